"""What is learnt: how rows become examples, which head, which units are predicted, which metrics.

A unit is one supervised prediction over C classes: a row's label, a word's tag, a learnt token, an end of an answer.
All that compares predictions - loss, distillation, divergence - works on units, and so is the same for every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task as TaskName
from finetune_trainer.batching import Batch, Example
from finetune_trainer.metrics import Metrics
from finetune_trainer.models import Loaded


class Task(Protocol):
    """A task over data that has been read and checked."""

    train: Sequence[Example]
    evaluation: Sequence[Example]
    retention: Sequence[Example]
    """Rows of an earlier task, to see what is forgotten; none unless asked for."""
    labels: Sequence[str]
    """The classes' names, by number; none where the classes are tokens."""
    max_length: int
    """Longest input in tokens."""
    data_report: Sequence[str]
    """What became of the rows, a line a source, and of a pretrained output layer for other classes or these."""
    baseline: float | None
    """The deciding metric's value without a model (classification: always the most frequent class)."""
    tokenizer: PreTrainedTokenizerBase
    model_class: str
    """The class of transformers that loads such a model: "AutoModelForSequenceClassification", ..."""

    def load_model(self, directory: Path | None = None) -> Loaded:
        """A pretrained model with this task's head: the job's, or one from another directory."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors."""

    def num_units(self, examples: Sequence[Example]) -> int:
        """How many labelled units there are; a mean loss is taken over them."""

    def unit_logits(self, output: Any, batch: Batch) -> Tensor:
        """The logits [U, C] of a batch's units, in the order of its targets."""

    def new_metrics(self) -> Metrics:
        """An empty set of metrics."""

    def probes(self, count: int) -> dict[str, Any]:
        """A few evaluation inputs as the tokenizer's arguments in JSON, to compare an exported model by."""


def make_task(run: Run, model_directory: Path) -> Task:
    """Read the data of a run's task. Raises TrainerError."""
    match run.spec.task:
        case TaskName.TEXT_CLASSIFICATION:
            from finetune_trainer.tasks.text_classification import TextClassification

            return TextClassification.read(run, model_directory)
        case TaskName.TOKEN_CLASSIFICATION:
            from finetune_trainer.tasks.token_classification import TokenClassification

            return TokenClassification.read(run, model_directory)
        case TaskName.QUESTION_ANSWERING:
            from finetune_trainer.tasks.question_answering import QuestionAnswering

            return QuestionAnswering.read(run, model_directory)
        case TaskName.TEXT_GENERATION:
            from finetune_trainer.tasks.text_generation import TextGeneration

            return TextGeneration.read(run, model_directory)
        case other:
            raise NotImplementedError(other)  # refused when the manifest is validated
