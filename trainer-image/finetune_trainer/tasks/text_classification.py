"""Text classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from finetune_api.run import Run
from finetune_trainer import losses
from finetune_trainer.batching import Batch, Example, collate
from finetune_trainer.data import text_classification as data
from finetune_trainer.metrics import ClassificationMetrics
from finetune_trainer.models import Loaded, check_directory, load_model, load_tokenizer

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
        self.train: Sequence[Example]
        self.evaluation: Sequence[Example]
        self.train, truncated_train = self._tokenise(texts.train)
        self.evaluation, truncated_evaluation = self._tokenise(texts.evaluation)
        for report, truncated in zip(texts.reports, (truncated_train, truncated_evaluation), strict=False):
            report.num_truncated = truncated
        self.data_report: Sequence[str] = [str(report) for report in texts.reports]
        self.baseline = texts.majority_fraction()

    @classmethod
    def read(cls, run: Run, directory: Path) -> TextClassification:
        """Read and tokenise a run's data. The model directory is checked first, because that takes no time."""
        check_directory(directory)
        tokenizer = load_tokenizer(directory)
        # Tokenizers without a limit of their own say so with a huge number.
        limit = min(tokenizer.model_max_length, DEFAULT_MAX_LENGTH)
        return cls(
            data.load(run), directory, tokenizer, min(run.spec.data.max_length or limit, tokenizer.model_max_length)
        )

    def load_model(self) -> Loaded:
        """The pretrained model with a head of one output a label."""
        return load_model(
            AutoModelForSequenceClassification,
            self._directory,
            self._tokenizer,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={label: number for number, label in enumerate(self.labels)},
            problem_type="single_label_classification",  # or transformers guesses it from the targets' dtype
        )

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

    def _tokenise(self, rows: Sequence[data.LabelledText]) -> tuple[list[Example], int]:
        """The rows as examples, and how many were truncated."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        examples, num_truncated = [], 0
        for start in range(0, len(rows), _TOKENISE_ROWS):
            chunk = rows[start : start + _TOKENISE_ROWS]
            pairs = [row.pair for row in chunk] if chunk[0].pair is not None else None
            encoded = self._tokenizer([row.text for row in chunk], pairs, truncation=True, max_length=self.max_length)
            for i, row in enumerate(chunk):
                ids = encoded["input_ids"][i]
                types = encoded["token_type_ids"][i] if "token_type_ids" in encoded else None
                examples.append(Example(ids, types, number_of[row.label]))
                overflowing = encoded.encodings[i].overflowing if encoded.encodings else ()
                num_truncated += bool(overflowing)
        return examples, num_truncated
