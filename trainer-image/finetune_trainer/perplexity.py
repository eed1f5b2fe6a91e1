"""Perplexity: how many tokens a model wavers between, on average, at each token it should have written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from finetune_trainer.batching import Batch, Example

# exp of more is more than a float holds; a loss of 700 nats is as hopeless as one of 7,000.
_LARGEST_LOSS = 700.0


class PerplexityMetrics:
    """Mean loss in nats over all learnt tokens, whatever batches they come in, and its exponential."""

    def __init__(self) -> None:
        self._loss_sum = 0.0
        self._num_tokens = 0

    def update(self, examples: Sequence[Example], batch: Batch, logits_UC: Tensor, loss_sum: float) -> None:
        """Add a batch; its units are tokens."""
        self._loss_sum += loss_sum
        self._num_tokens += int((batch.targets >= 0).sum())

    def compute(self) -> dict[str, float]:
        """The metrics so far. NaN stays NaN, so that a broken model is seen."""
        loss = self._loss_sum / self._num_tokens
        return {"perplexity": math.exp(min(loss, _LARGEST_LOSS)) if loss == loss else loss, "loss": loss}
