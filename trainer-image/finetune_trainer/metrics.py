"""Metrics that are fed batch by batch and keep counts, never logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from finetune_trainer.batching import Batch, Example


class Metrics(Protocol):
    """A task's metrics over rows, independent of how the rows are batched."""

    def update(self, examples: Sequence[Example], batch: Batch, logits_UC: Tensor, loss_sum: float) -> None:
        """Add a batch: its examples, what was made of them, the units' logits and the sum of their losses."""

    def compute(self) -> dict[str, float]:
        """The metrics so far by name; "loss" is one of them."""


class ClassificationMetrics:
    """Accuracy, macro-F1 and mean loss over rows."""

    def __init__(self, num_classes: int) -> None:
        # By class, because a table of all pairs would take 800 MB for 10,000 classes.
        self._hits = torch.zeros(num_classes, dtype=torch.int64)
        self._predicted = torch.zeros_like(self._hits)
        self._actual = torch.zeros_like(self._hits)
        self._loss_sum = 0.0

    def update(self, examples: Sequence[Example], batch: Batch, logits_UC: Tensor, loss_sum: float) -> None:
        """Add a batch; its units are rows."""
        predicted_B, targets_B = logits_UC.argmax(-1).cpu(), batch.targets.cpu()
        for counts, classes in (
            (self._hits, targets_B[predicted_B == targets_B]),
            (self._predicted, predicted_B),
            (self._actual, targets_B),
        ):
            counts += torch.bincount(classes, minlength=len(counts))
        self._loss_sum += loss_sum

    def compute(self) -> dict[str, float]:
        """The metrics so far. Macro-F1 is over the classes that occur or are predicted, as scikit-learn has it."""
        rows = self._actual.sum().item()
        support = self._predicted + self._actual
        f1 = 2 * self._hits[support > 0].double() / support[support > 0]
        return {
            "accuracy": self._hits.sum().item() / rows,
            "macroF1": f1.mean().item(),
            "loss": self._loss_sum / rows,
        }
