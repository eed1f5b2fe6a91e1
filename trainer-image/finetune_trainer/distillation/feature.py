"""Feature-based distillation: hidden states and attention distributions of paired layers.

Each function sums over tokens and divides by a denominator that the caller takes over the whole optimizer step, so
that no split of a batch changes loss or gradient.

Legend of tensor shapes: B rows, L tokens (Q of them asking, K of them asked), H heads, D width. T are the places of
the tokens of all rows that are no padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune_api.v1alpha1.strategy import HiddenLoss
from finetune_trainer.batching import at


def hidden_loss(student_BLD: Tensor, teacher_BLD: Tensor, places_T: Tensor, kind: HiddenLoss, tokens: float) -> Tensor:
    """Hidden states, over the tokens of a step.

    MSE: the mean over the width of the squared difference (Romero et al. 2014, 1412.6550, section 2.2; Jiao et al.
    2019, 1909.10351, section 3). Cosine: one minus the cosine (Sanh et al. 2019, 1910.01108, section 2).
    """
    student_TD, teacher_TD = at(student_BLD.float(), places_T), at(teacher_BLD.float(), places_T)
    if kind == HiddenLoss.COSINE:
        return (1.0 - F.cosine_similarity(student_TD, teacher_TD, dim=-1)).sum() / tokens
    return (student_TD - teacher_TD).square().mean(-1).sum() / tokens


def attention_loss(student_BHQK: Tensor, teacher_BHQK: Tensor, places_T: Tensor, tokens: float) -> Tensor:
    """KL(teacher || student) of attention distributions: the mean over heads, over the asking tokens of a step.

    Wang et al. 2020 (2002.10957), section 3.1. Where the numbers of heads differ, a head has no counterpart: the
    heads' mean distributions are compared.
    """
    student_BHQK, teacher_BHQK = student_BHQK.float(), teacher_BHQK.float()
    if student_BHQK.shape[1] != teacher_BHQK.shape[1]:
        student_BHQK, teacher_BHQK = student_BHQK.mean(1, keepdim=True), teacher_BHQK.mean(1, keepdim=True)
    return at(_kl(teacher_BHQK, student_BHQK).mean(1), places_T).sum() / tokens


def layer_map(num_student: int, num_teacher: int) -> list[tuple[int, int]]:
    """Pairs (student, teacher) spread evenly, the last with the last: i learns from ceil((i + 1) T / S) - 1.

    With T a multiple of S it is the uniform map of Jiao et al. 2019, section 4.
    """
    return [(i, -(-(i + 1) * num_teacher // num_student) - 1) for i in range(num_student)]


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL of probabilities over the last axis. Masked keys have exactly none on both sides."""
    log_student = student.clamp_min(torch.finfo(torch.float32).tiny).log()
    return (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1)
