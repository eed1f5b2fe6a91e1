"""What is learnt: how rows become examples, which head, which loss, which metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task as TaskName
from finetune_trainer.batching import Batch, Example
from finetune_trainer.metrics import ClassificationMetrics
from finetune_trainer.models import Loaded


class Task(Protocol):
    """A task over data that has been read and checked."""

    train: Sequence[Example]
    evaluation: Sequence[Example]
    labels: Sequence[str]
    """The classes' names, by number."""
    max_length: int
    """Longest input in tokens."""
    data_report: Sequence[str]
    """What became of the rows, a line a source."""
    baseline: float
    """The deciding metric's value without a model (classification: always the most frequent class)."""

    def load_model(self) -> Loaded:
        """The pretrained model with this task's head."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors."""

    def num_units(self, examples: Sequence[Example]) -> int:
        """What a mean loss is taken over: the rows, or the supervised tokens."""

    def loss(self, logits: Tensor, batch: Batch, denominator: float) -> Tensor:
        """Sum of the units' losses over the denominator."""

    def new_metrics(self) -> ClassificationMetrics:
        """An empty set of metrics."""

    def probe_texts(self, count: int) -> list[tuple[str, str | None]]:
        """A few evaluation inputs as text, to compare an exported model by."""


def make_task(run: Run, model_directory: Path) -> Task:
    """Read the data of a run's task. Raises TrainerError."""
    match run.spec.task:
        case TaskName.TEXT_CLASSIFICATION:
            from finetune_trainer.tasks.text_classification import TextClassification

            return TextClassification.read(run, model_directory)
        case other:
            raise NotImplementedError(other)  # refused when the manifest is validated
