"""Losses as pure functions with an explicit denominator, so that no split of a batch changes loss or gradient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_BC: Tensor, targets_B: Tensor, denominator: float) -> Tensor:
    """Sum of the rows' cross-entropies over `denominator` (for a mean: the rows of the whole batch), in float32."""
    return F.cross_entropy(logits_BC.float(), targets_B, reduction="sum") / denominator
