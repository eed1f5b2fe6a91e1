"""Losses as pure functions with an explicit denominator, so that no split of a batch changes loss or gradient."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_UC: Tensor, targets_U: Tensor, denominator: float) -> Tensor:
    """Sum of the labelled units' cross-entropies over `denominator` (for a mean: those of the whole batch), in float32.

    Units whose target is negative have no label and count for nothing. Classes with a logit of -inf are impossible.
    """
    targets_U = targets_U.clamp(min=-1)
    return F.cross_entropy(logits_UC.float(), targets_U, ignore_index=-1, reduction="sum") / denominator
