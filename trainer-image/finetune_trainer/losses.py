"""Losses as pure functions with an explicit denominator, so that no split of a batch changes loss or gradient.

Legend of tensor shapes: U units (supervised predictions), C classes, K classes chosen among them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NUMBERS_AT_ONCE = 2**24
"""So many numbers are worked on at once: 64 MiB a copy.

Copies of less than 32 MiB would go to the C library's heap, and what is kept between them would tear it to pieces.
"""


def in_parts(values_U: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Logits [U, C], or what else there is of their units, in parts that are small enough to be copied a few times.

    The logits over a large vocabulary are by far the largest tensor there is.
    """
    return values_U.split(max(1, NUMBERS_AT_ONCE // max(1, num_classes)))


def cross_entropy(logits_UC: Tensor, targets_U: Tensor, denominator: float) -> Tensor:
    """Sum of the labelled units' cross-entropies over `denominator` (for a mean: those of the whole batch), in float32.

    Units whose target is negative have no label and count for nothing. Classes with a logit of -inf are impossible.
    """
    targets_U = targets_U.clamp(min=-1)
    if logits_UC.requires_grad and logits_UC.numel() > NUMBERS_AT_ONCE:
        loss: Tensor = _InParts.apply(logits_UC, targets_U, denominator)
        return loss
    return _cross_entropy(logits_UC, targets_U, denominator)


def _cross_entropy(logits_UC: Tensor, targets_U: Tensor, denominator: float) -> Tensor:
    return F.cross_entropy(logits_UC.float(), targets_U, ignore_index=-1, reduction="sum") / denominator


class _InParts(torch.autograd.Function):
    """The same for logits whose copies in float32 would be too large: each part's gradient is computed beside it."""

    @staticmethod
    def forward(ctx: Any, logits_UC: Tensor, targets_U: Tensor, denominator: float) -> Tensor:
        gradient_UC, sums = torch.empty_like(logits_UC), []
        parts = (in_parts(values, logits_UC.shape[-1]) for values in (logits_UC.detach(), targets_U, gradient_UC))
        for part_UC, part_U, gradient_of_part_UC in zip(*parts, strict=True):
            with torch.enable_grad():
                loss = _cross_entropy(part_UC.requires_grad_(), part_U, denominator)
            gradient_of_part_UC.copy_(torch.autograd.grad(loss, part_UC)[0])
            sums.append(loss.detach())
        ctx.gradient_UC = gradient_UC
        return torch.stack(sums).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        return ctx.gradient_UC.mul_(factor), None, None


def kl_divergence(first_UC: Tensor, second_UC: Tensor) -> Tensor:
    """KL(first || second) of each unit [U] in nats, of log-probabilities.

    What the first holds impossible adds nothing.
    """
    possible_UC = ~first_UC.isneginf()
    # Chosen before it is multiplied: 0 times infinity would be NaN, in the gradient if not in the value.
    ratio_UC = torch.where(possible_UC, first_UC, 0.0) - torch.where(possible_UC, second_UC, 0.0)
    return (torch.where(possible_UC, first_UC.exp(), 0.0) * ratio_UC).sum(-1)


def log_of_rest(logits_UC: Tensor, classes_UK: Tensor) -> Tensor:
    """Log of the sum of exp over the classes not named [U]."""
    if classes_UK.shape[-1] == logits_UC.shape[-1]:
        return logits_UC.new_full(logits_UC.shape[:-1], -torch.inf)
    others_UC = logits_UC.scatter(-1, classes_UK, -torch.inf)
    possible_U = ~others_UC.isneginf().all(-1)
    # logsumexp of nothing has no gradient: NaN would come of it.
    safe_UC = torch.where(possible_U[:, None], others_UC, 0.0)
    return torch.where(possible_U, safe_UC.logsumexp(-1), -torch.inf)
