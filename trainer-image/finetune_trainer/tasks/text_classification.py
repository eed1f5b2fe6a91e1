"""Text classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import losses
from finetune_trainer.batching import Batch, Example, collate
from finetune_trainer.data import text_classification as data
from finetune_trainer.data.report import DataReport
from finetune_trainer.errors import TrainerError
from finetune_trainer.metrics import ClassificationMetrics
from finetune_trainer.models import Loaded, check_directory, load_model, load_tokenizer, longest_input

DEFAULT_MAX_LENGTH = 512
_TOKENISE_ROWS = 1000


class TextClassification:
    """The rows of a job as examples, and the model that classifies them."""

    def __init__(self, texts: data.LabelledTexts, directory: Path, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self._texts = texts
        self._directory = directory
        self._tokenizer = tokenizer
        self.max_length = max_length
        self.labels: Sequence[str] = texts.labels
        # Without evaluation data of its own there is one report for both.
        self.train: Sequence[Example] = self._tokenise(texts.train, texts.reports[0])
        self.evaluation: Sequence[Example] = self._tokenise(texts.evaluation, texts.reports[-1])
        self.data_report: Sequence[str] = [str(report) for report in texts.reports]
        self.baseline = texts.majority_fraction()

    @classmethod
    def read(cls, run: Run, directory: Path) -> TextClassification:
        """Read and tokenise a run's data. The model directory is checked first, because that takes no time."""
        check_directory(directory)
        tokenizer = load_tokenizer(directory)
        limit, wanted = longest_input(directory, tokenizer), run.spec.data.max_length
        if wanted is not None and wanted > limit:
            raise TrainerError(
                ExitCode.SPEC_INVALID,
                f"spec.data.maxLength is {wanted}, but the model takes at most {limit} tokens",
                f"use at most {limit}",
            )
        # Tokenizers without a limit of their own say so with a huge number.
        return cls(
            data.load(run), directory, tokenizer, wanted or min(limit, tokenizer.model_max_length, DEFAULT_MAX_LENGTH)
        )

    def load_model(self) -> Loaded:
        """The pretrained model with a head of one output a label."""
        loaded = load_model(
            AutoModelForSequenceClassification,
            self._directory,
            self._tokenizer,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={label: number for number, label in enumerate(self.labels)},
            problem_type="single_label_classification",  # or transformers guesses it from the targets' dtype
        )
        highest = max(max(example.input_ids) for example in (*self.train, *self.evaluation))
        size = loaded.model.get_input_embeddings().num_embeddings
        if highest >= size:
            raise TrainerError(
                ExitCode.MODEL_INVALID,
                f"{self._directory}: the tokenizer gives token {highest}, but the model knows {size} tokens only",
                "use the tokenizer that belongs to the model",
            )
        return loaded

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors; targets are class numbers [B]."""
        return collate(examples, self._tokenizer.pad_token_id)

    def num_units(self, examples: Sequence[Example]) -> int:
        """The rows."""
        return len(examples)

    def loss(self, logits: Tensor, batch: Batch, denominator: float) -> Tensor:
        """Cross-entropy."""
        return losses.cross_entropy(logits, batch.targets, denominator)

    def new_metrics(self) -> ClassificationMetrics:
        """Accuracy, macro-F1 and loss."""
        return ClassificationMetrics(len(self.labels))

    def probe_texts(self, count: int) -> list[tuple[str, str | None]]:
        """The first evaluation rows."""
        return [(row.text, row.pair) for row in self._texts.evaluation[:count]]

    def _tokenise(self, rows: Sequence[data.LabelledText], report: DataReport) -> list[Example]:
        """The rows as examples; those that are truncated are counted."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        examples = []
        for start in range(0, len(rows), _TOKENISE_ROWS):
            chunk = rows[start : start + _TOKENISE_ROWS]
            pairs = [row.pair for row in chunk] if chunk[0].pair is not None else None
            encoded = self._tokenizer([row.text for row in chunk], pairs, truncation=True, max_length=self.max_length)
            types = encoded.get("token_type_ids") or [None] * len(chunk)
            for row, ids, row_types in zip(chunk, encoded["input_ids"], types, strict=True):
                examples.append(Example(ids, row_types, number_of[row.label]))
                report.num_truncated += len(ids) == self.max_length and self._is_longer(row)
        return examples

    def _is_longer(self, row: data.LabelledText) -> bool:
        return len(self._tokenizer(row.text, row.pair)["input_ids"]) > self.max_length
