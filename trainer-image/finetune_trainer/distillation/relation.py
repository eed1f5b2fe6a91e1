"""Relation-based distillation: relations between samples, between layers, and between a layer's tokens.

Legend of tensor shapes: B rows, N samples, L tokens of a row (Q of them asking, K of them asked), H heads, R relation
heads, D width. T are the places of the tokens of all rows that are no padding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune_trainer.batching import at, places


def pool(hidden_BLD: Tensor, owner_BL: Tensor, places_T: Tensor, num_samples: int) -> Tensor:
    """Each sample's mean over its tokens [N, D]: the state that samples are compared by.

    `owner_BL` numbers the samples that tokens belong to, -1 for padding; several may share a row.
    """
    states_TD, owner_T = at(hidden_BLD.float(), places_T), at(owner_BL, places_T)
    sums_ND = states_TD.new_zeros(num_samples, states_TD.shape[-1]).index_add(0, owner_T, states_TD)
    sizes_N = states_TD.new_zeros(num_samples).index_add(0, owner_T, torch.ones_like(states_TD[:, 0]))
    return sums_ND / sizes_N[:, None]


def distance_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Smooth L1 between the pairwise distances, each set divided by its own mean.

    Park et al. 2019 (1904.05068), section 3.2.1; here the mean over the ordered pairs of different rows, so that
    its weight does not depend on the size of the batch. Two rows or fewer have no distances to compare: 0.
    """
    size = len(student_BD)
    if size < 3:
        return student_BD.sum() * 0.0
    pairs = places(~torch.eye(size, dtype=torch.bool)).to(student_BD.device, non_blocking=True)
    student, teacher = (at(_distances(one_BD), pairs) for one_BD in (student_BD, teacher_BD))
    return F.smooth_l1_loss(student, teacher)


def angle_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles at the middle of every ordered triple of different rows.

    Park et al. 2019, section 3.2.2; the mean over the triples. Fewer than three rows make no angle: 0.
    """
    size = len(student_BD)
    if size < 3:
        return student_BD.sum() * 0.0
    other_BB = ~torch.eye(size, dtype=torch.bool)
    triples_BBB = other_BB[:, :, None] & other_BB[:, None, :] & other_BB[None, :, :]
    triples = places(triples_BBB).to(student_BD.device, non_blocking=True)
    student, teacher = (at(_angles(one_BD).flatten(0, 1), triples) for one_BD in (student_BD, teacher_BD))
    return F.smooth_l1_loss(student, teacher)


def flow_loss(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    owner_BL: Tensor,
    places_T: Tensor,
    tokens: float,
) -> Tensor:
    """The flow from one layer to another: squared difference of the cosines between their tokens.

    After Yim et al. 2017 (CVPR), whose matrix multiplies two layers' features and sums over positions, so both models
    need the same widths. Here the sum is over the features instead: F[q, k] = cos(a[q], b[k]), a relation of
    positions, which any two widths share. The mean over the tokens k of the same sample, over the tokens q of a step.
    """
    same_BQK = (owner_BL[:, :, None] == owner_BL[:, None, :]) & (owner_BL >= 0)[:, None, :]
    squared_BQK = (_flow(*student) - _flow(*teacher)).square() * same_BQK
    mean_BQ = squared_BQK.sum(-1) / same_BQK.sum(-1).clamp_min(1)
    return at(mean_BQ, places_T).sum() / tokens


def num_relation_heads(student_width: int, teacher_width: int, preferred: int) -> int:
    """The largest number of relation heads that divides both widths and is at most the preferred one."""
    shared = math.gcd(student_width, teacher_width)
    return max(number for number in range(1, preferred + 1) if shared % number == 0)


def self_relation_loss(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    allowed_BQK: Tensor,
    places_T: Tensor,
    num_heads: int,
    tokens: float,
) -> Tensor:
    """KL(teacher || student) between self-attention relations of two kinds of vectors, each pair [B, H, L, D].

    Wang et al. 2020 (2002.10957), sections 3.1 and 3.2 (queries with keys, values with values), with the relation
    heads of Wang et al. 2021 (2012.15828), section 3: the heads are put together and cut anew into `num_heads`, so
    that neither the numbers of heads nor the widths have to agree. Relations are softmax(x y^T / sqrt(width of a
    relation head)) over the allowed tokens; the mean over relation heads, over the asking tokens of a step.
    """
    student_BRQK, teacher_BRQK = (_relations(*one, allowed_BQK, num_heads) for one in (student, teacher))
    teacher_BRQK = teacher_BRQK.detach()
    # Masked entries are the lowest number on both sides, so their ratio is finite and their mass is none.
    kl_BRQ = (teacher_BRQK.exp() * (teacher_BRQK - student_BRQK)).sum(-1)
    return at(kl_BRQ.mean(1), places_T).sum() / tokens


def _distances(rows_BD: Tensor) -> Tensor:
    """Distances over their mean [B, B]; rows that coincide have a distance of 0 and no gradient."""
    distances_BB = torch.linalg.vector_norm(rows_BD.float()[:, None] - rows_BD.float()[None], dim=-1)
    num_pairs = len(rows_BD) * (len(rows_BD) - 1)
    return distances_BB / (distances_BB.sum() / num_pairs).clamp_min(torch.finfo(torch.float32).tiny)


def _angles(rows_BD: Tensor) -> Tensor:
    """Cos of the angle at j between i and k, at [j, i, k]."""
    towards_BBD = F.normalize(rows_BD.float()[None] - rows_BD.float()[:, None], dim=-1)
    return towards_BBD @ towards_BBD.transpose(1, 2)


def _flow(first_BLD: Tensor, second_BLD: Tensor) -> Tensor:
    return F.normalize(first_BLD.float(), dim=-1) @ F.normalize(second_BLD.float(), dim=-1).transpose(1, 2)


def _relations(first_BHLD: Tensor, second_BHLD: Tensor, allowed_BQK: Tensor, num_heads: int) -> Tensor:
    """Log-probabilities [B, R, Q, K] of a token's relations to the allowed ones."""
    first_BRLD, second_BRLD = (_cut_anew(one, num_heads) for one in (first_BHLD, second_BHLD))
    scores_BRQK = first_BRLD @ second_BRLD.transpose(-1, -2) / math.sqrt(first_BRLD.shape[-1])
    lowest = torch.finfo(torch.float32).min
    return torch.where(allowed_BQK[:, None], scores_BRQK, lowest).log_softmax(-1)


def _cut_anew(vectors_BHLD: Tensor, num_heads: int) -> Tensor:
    joined_BLD = vectors_BHLD.float().transpose(1, 2).flatten(2)
    return joined_BLD.unflatten(-1, (num_heads, -1)).transpose(1, 2)
