"""What training minimises: the task's loss, or terms that a strategy adds to it or puts in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from finetune_trainer import losses
from finetune_trainer.batching import Batch, Example
from finetune_trainer.tasks import Task

Forward = Callable[..., Any]
"""Runs the model on a batch's inputs in the run's precision; takes the model's keyword arguments."""


class Objective(Protocol):
    """Terms whose sum is minimised."""

    def terms(
        self, forward: Forward, batch: Batch, rows: Sequence[int], examples_of_step: Sequence[Example], step: int
    ) -> dict[str, Tensor]:
        """A micro-batch's part of each weighted term, by name.

        `rows` are the micro-batch's numbers in the task's training examples. Denominators are taken over all examples
        of the step, so that how a batch is split changes neither loss nor gradient. Losses are float32.
        """


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """Cross-entropy, a mean over the step's labelled units."""

    task: Task

    def terms(
        self, forward: Forward, batch: Batch, rows: Sequence[int], examples_of_step: Sequence[Example], step: int
    ) -> dict[str, Tensor]:
        """The one term `task`."""
        logits_UC = self.task.unit_logits(forward(**batch.inputs), batch)
        num_units = max(1, self.task.num_units(examples_of_step))
        return {"task": losses.cross_entropy(logits_UC, batch.targets, num_units)}
