"""Text classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from finetune_api.run import Run
from finetune_trainer.batching import UNLABELED, Batch, Example, collate
from finetune_trainer.data import text_classification as data
from finetune_trainer.data.rows import Part
from finetune_trainer.metrics import ClassificationMetrics
from finetune_trainer.model_checks import check_directory
from finetune_trainer.model_config import read_config
from finetune_trainer.models import Loaded, load_tokenizer, pools_last_column
from finetune_trainer.tasks.classes import choose_classes
from finetune_trainer.tasks.limits import check_vocabulary, max_length

DEFAULT_MAX_LENGTH = 512
_TOKENISE_ROWS = 1000


class TextClassification:
    """The rows of a job as examples, and the model that classifies them. A unit is a row."""

    model_class = "AutoModelForSequenceClassification"

    def __init__(self, run: Run, texts: data.LabelledTexts, directory: Path, tokenizer: PreTrainedTokenizerBase):
        self._texts = texts
        self._directory = directory
        self.tokenizer = tokenizer
        self.max_length = max_length(run, directory, tokenizer, DEFAULT_MAX_LENGTH)
        self._pads_left = pools_last_column(read_config(directory))
        self._classes = choose_classes(texts.labels, AutoModelForSequenceClassification, directory)
        self.labels: Sequence[str] = self._classes.labels
        rows = texts.rows
        self.train: Sequence[Example] = [
            example for part in (rows.train, rows.replay, rows.unlabeled) for example in self._tokenise(part)
        ]
        self.evaluation: Sequence[Example] = self._tokenise(rows.evaluation)
        self.retention: Sequence[Example] = self._tokenise(rows.retention)
        self.data_report: Sequence[str] = [*map(str, rows.reports()), *self._classes.report]
        self.baseline: float | None = texts.majority().get(run.spec.metric())

    @classmethod
    def read(cls, run: Run, directory: Path) -> TextClassification:
        """Read and tokenise a run's data. The model directory is checked first, because that takes no time."""
        check_directory(directory)
        tokenizer = load_tokenizer(directory)
        return cls(run, data.load(run), directory, tokenizer)

    def load_model(self, directory: Path | None = None) -> Loaded:
        """A pretrained model with a head of one output a label."""
        is_own, directory = directory is None, directory or self._directory
        loaded = self._classes.load_model(
            AutoModelForSequenceClassification,
            directory,
            self.tokenizer,
            is_own=is_own,
            problem_type="single_label_classification",  # or transformers guesses it from the targets' dtype
        )
        check_vocabulary(loaded, directory, (*self.train, *self.evaluation, *self.retention))
        return loaded

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors; targets are class numbers [B]."""
        return collate(examples, self.tokenizer.pad_token_id, on_left=self._pads_left)

    def num_units(self, examples: Sequence[Example]) -> int:
        """The rows with a label."""
        return sum(example.target != UNLABELED for example in examples)

    def unit_logits(self, output: Any, batch: Batch) -> Tensor:
        """The rows' logits as they are."""
        return output.logits

    def new_metrics(self) -> ClassificationMetrics:
        """Accuracy, macro-F1 and loss."""
        return ClassificationMetrics(len(self.labels))

    def probes(self, count: int) -> dict[str, Any]:
        """The first evaluation rows."""
        rows = self._texts.rows.evaluation.rows[:count]
        pairs = {"text_pair": [row.pair for row in rows]} if rows[0].pair is not None else {}
        padding = {"padding_side": "left"} if self._pads_left else {}
        return {"text": [row.text for row in rows], **pairs, **padding}

    def _tokenise(self, part: Part[data.LabelledText] | None) -> list[Example]:
        """The rows as examples; those that are truncated are counted."""
        if part is None:
            return []
        number_of = {label: number for number, label in enumerate(self.labels)} | {"": UNLABELED}
        examples: list[Example] = []
        for start in range(0, len(part.rows), _TOKENISE_ROWS):
            chunk = part.rows[start : start + _TOKENISE_ROWS]
            pairs = [row.pair for row in chunk] if chunk[0].pair is not None else None
            encoded = self.tokenizer([row.text for row in chunk], pairs, truncation=True, max_length=self.max_length)
            types = encoded.get("token_type_ids") or [None] * len(chunk)
            for row, ids, row_types in zip(chunk, encoded["input_ids"], types, strict=True):
                examples.append(Example(ids, row_types, number_of[row.label], row=len(examples)))
                part.report.num_truncated += len(ids) == self.max_length and self._is_longer(row)
        return examples

    def _is_longer(self, row: data.LabelledText) -> bool:
        return len(self.tokenizer(row.text, row.pair)["input_ids"]) > self.max_length
