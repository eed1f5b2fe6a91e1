"""Measures forgetting: how far the model's predictions are from those before training, and what it lost elsewhere.

KL(tuned || base), measured on the new task's own rows, predicts how much is forgotten, so no earlier data is needed for
it (Shenfeld et al. 2025, arXiv 2509.04259). The base is the model as training found it, with its new head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetune_api.v1alpha1.training import Metric
from finetune_trainer import losses

TOP_CLASSES = 64
MAX_UNITS = 20_000
"""Units that are kept of a large evaluation: those of its longest rows, 10 MB."""


class BasePredictions:
    """What the model said before training: for each unit the probabilities of its likeliest classes, and of the rest.

    Where there are more classes than are kept, the divergence is a lower bound of the true one, because telling fewer
    outcomes apart can only make two distributions look more alike.
    """

    def __init__(self) -> None:
        self._logs: list[Tensor] = []
        self._classes: list[Tensor] = []

    @property
    def num_units(self) -> int:
        """Units so far."""
        return sum(len(each) for each in self._classes)

    def record(self, logits_UC: Tensor) -> None:
        """Add a batch of the base's predictions."""
        logits_UC = logits_UC[: max(0, MAX_UNITS - self.num_units)]
        log_UC = logits_UC.float().log_softmax(-1)
        log_UK, classes_UK = log_UC.topk(min(TOP_CLASSES, log_UC.shape[-1]), dim=-1)
        self._logs.append(_with_rest(log_UC, log_UK, classes_UK).cpu())
        self._classes.append(classes_UK.cpu())

    def tensors(self) -> dict[str, Tensor]:
        """All of it, to save; batches with fewer classes are filled up with impossible ones."""
        width = max(each.shape[1] for each in self._classes)
        logs, classes = [], []
        for log, kept in zip(self._logs, self._classes, strict=True):
            missing = width - kept.shape[1]
            filling = log.new_full((len(log), missing), -torch.inf)
            logs.append(torch.cat([log[:, :-1], filling, log[:, -1:]], dim=1))
            classes.append(torch.nn.functional.pad(kept, (0, missing)))
        return {"logs": torch.cat(logs), "classes": torch.cat(classes)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> BasePredictions:
        """What was saved."""
        base = cls()
        base._logs, base._classes = [tensors["logs"]], [tensors["classes"]]
        return base

    def comparison(self) -> Comparison:
        """To be shown the tuned model's predictions for the same units in the same order."""
        return Comparison(self.tensors())


class Comparison:
    """Sums KL(tuned || base) over units."""

    def __init__(self, base: dict[str, Tensor]) -> None:
        self._base = base
        self._position = 0
        self._sum = 0.0

    def look(self, logits_UC: Tensor) -> None:
        """Add a batch of the tuned model's predictions."""
        end = min(self._position + len(logits_UC), len(self._base["classes"]))
        part = slice(self._position, end)
        log_UC = logits_UC[: end - self._position].float().log_softmax(-1)
        classes_UK = self._base["classes"][part].to(log_UC.device)
        base_UK = self._base["logs"][part].to(log_UC.device)
        log_UK = log_UC.gather(1, classes_UK).masked_fill(base_UK[:, :-1].isneginf(), -torch.inf)
        own_UK = _with_rest(log_UC, log_UK, classes_UK)
        self._sum += losses.kl_divergence(own_UK, base_UK).sum().item()
        self._position = end

    def mean(self) -> float:
        """In nats a unit."""
        return self._sum / max(1, self._position)


def _with_rest(log_UC: Tensor, log_UK: Tensor, classes_UK: Tensor) -> Tensor:
    """The chosen classes' log-probabilities, and in a last column that of all others together."""
    return torch.cat([log_UK, losses.log_of_rest(log_UC, classes_UK).unsqueeze(1)], dim=1)


def drop(metric: Metric, before: float, after: float) -> float:
    """How much worse a metric has become; where lower is better, as a share of what it was."""
    if metric.higher_is_better:
        return before - after
    return (after - before) / before if before else 0.0
