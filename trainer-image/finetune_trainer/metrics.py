"""Metrics that are fed batch by batch and keep counts, never logits."""

from __future__ import annotations

import torch
from torch import Tensor


class ClassificationMetrics:
    """Accuracy, macro-F1 and mean loss over rows, independent of how the rows are batched."""

    def __init__(self, num_classes: int) -> None:
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self._loss_sum = 0.0

    def update(self, logits_BC: Tensor, targets_B: Tensor, loss_sum: float) -> None:
        """Add a batch."""
        num_classes = len(self._confusion)
        pairs = targets_B * num_classes + logits_BC.argmax(-1)
        self._confusion += torch.bincount(pairs.cpu(), minlength=num_classes**2).view(num_classes, num_classes)
        self._loss_sum += loss_sum

    def compute(self) -> dict[str, float]:
        """The metrics so far. Macro-F1 is over the classes that occur or are predicted, as scikit-learn has it."""
        rows = self._confusion.sum().item()
        hits = self._confusion.diagonal().double()
        support = (self._confusion.sum(0) + self._confusion.sum(1)).double()
        f1 = 2 * hits[support > 0] / support[support > 0]
        return {
            "accuracy": hits.sum().item() / rows,
            "macroF1": f1.mean().item(),
            "loss": self._loss_sum / rows,
        }
