"""Response-based distillation: divergences between the student's and the teacher's distributions over classes.

Legend of tensor shapes: U units (supervised predictions), C classes, K classes that are kept of the teacher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_api.v1alpha1.strategy import Divergence
from finetune_trainer.losses import kl_divergence, log_of_rest

_HALF = 0.5


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The teacher's largest logits, and what is left of its distribution."""

    values_UK: Tensor
    """Logits, float32."""
    classes_UK: Tensor
    """Which classes they are of."""
    rest_U: Tensor
    """log of the sum of exp(logit / temperature) over all other classes; -inf where there are none."""


def top_logits(logits_UC: Tensor, k: int, temperature: float) -> TopLogits:
    """The k largest logits of each unit (all of them, if there are fewer) and the mass of the others."""
    values_UK, classes_UK = logits_UC.float().topk(min(k, logits_UC.shape[-1]), dim=-1)
    return TopLogits(values_UK, classes_UK, log_of_rest(logits_UC.float() / temperature, classes_UK))


def divergence(student_UC: Tensor, teacher_UC: Tensor, kind: Divergence, temperature: float) -> Tensor:
    """The divergence of each unit [U] in nats, of both softened by the temperature, times its square.

    Hinton et al. 2015 (1503.02531), section 2: the square keeps the gradient's size when the temperature changes.
    Classes that both hold impossible (a logit of -inf) add nothing.
    """
    student_UC, teacher_UC = student_UC.float() / temperature, teacher_UC.float() / temperature
    return _divergence(student_UC.log_softmax(-1), teacher_UC.log_softmax(-1), kind) * temperature**2


def divergence_of_top(student_UC: Tensor, teacher: TopLogits, kind: Divergence, temperature: float) -> Tensor:
    """The same over K + 1 outcomes: the teacher's K largest classes, and one of the others together.

    The rest is not cut off: a student that puts its mass elsewhere pays for it. `teacher.rest_U` has to be of the
    same temperature.
    """
    softened_UC = student_UC.float() / temperature
    student = torch.cat(
        [softened_UC.gather(-1, teacher.classes_UK), log_of_rest(softened_UC, teacher.classes_UK)[:, None]], -1
    )
    known = torch.cat([teacher.values_UK / temperature, teacher.rest_U[:, None]], -1)
    return _divergence(student.log_softmax(-1), known.log_softmax(-1), kind) * temperature**2


def _divergence(student_UC: Tensor, teacher_UC: Tensor, kind: Divergence) -> Tensor:
    """Of log-probabilities."""
    match kind:
        case Divergence.FORWARD_KL:
            return kl_divergence(teacher_UC, student_UC)
        case Divergence.REVERSE_KL:
            return kl_divergence(student_UC, teacher_UC)
        case Divergence.JENSEN_SHANNON:
            # Agarwal et al. 2023 (2306.13649), section 2, with beta 1/2.
            mixture_UC = _log_mean(student_UC, teacher_UC)
            return _HALF * kl_divergence(teacher_UC, mixture_UC) + _HALF * kl_divergence(student_UC, mixture_UC)


def _log_mean(first_UC: Tensor, second_UC: Tensor) -> Tensor:
    """log((p + q) / 2) of log-probabilities."""
    impossible_UC = first_UC.isneginf() & second_UC.isneginf()
    first_UC, second_UC = (torch.where(impossible_UC, 0.0, one) for one in (first_UC, second_UC))
    mean_UC = torch.logaddexp(first_UC, second_UC) + math.log(_HALF)
    return torch.where(impossible_UC, -torch.inf, mean_UC)
