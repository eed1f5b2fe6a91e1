"""Every distillation term against a reference written by hand: loops over single numbers, as the papers have them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from finetune_api.v1alpha1.strategy import Divergence, HiddenLoss
from finetune_trainer.batching import places
from finetune_trainer.distillation.feature import attention_loss, hidden_loss, layer_map
from finetune_trainer.distillation.relation import (
    angle_loss,
    distance_loss,
    flow_loss,
    num_relation_heads,
    pool,
    self_relation_loss,
)
from finetune_trainer.distillation.response import divergence, divergence_of_top, top_logits

KINDS = list(Divergence)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(logits: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(one / temperature) for one in logits]
    return [one / sum(powers) for one in powers]


def kl(first: list[float], second: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True) if p > 0)


def between(student: list[float], teacher: list[float], kind: Divergence) -> float:
    """Of probabilities."""
    if kind == Divergence.FORWARD_KL:
        return kl(teacher, student)
    if kind == Divergence.REVERSE_KL:
        return kl(student, teacher)
    mixture = [(p + q) / 2 for p, q in zip(student, teacher, strict=True)]
    return (kl(teacher, mixture) + kl(student, mixture)) / 2


def smooth_l1(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def cosine(first: list[float], second: list[float]) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


class TestResponse:
    @pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_unit(self, kind: Divergence, temperature: float) -> None:
        student, teacher = 2 * normal(5, 4, seed=1), 2 * normal(5, 4, seed=2)
        found = divergence(student, teacher, kind, temperature)
        expected = [
            temperature**2 * between(probabilities(one, temperature), probabilities(other, temperature), kind)
            for one, other in zip(student.tolist(), teacher.tolist(), strict=True)
        ]
        assert found.tolist() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_impossible_classes_count_for_nothing(self, kind: Divergence) -> None:
        student, teacher = normal(3, 5, seed=1), normal(3, 5, seed=2)
        student[:, 3:], teacher[:, 3:] = -torch.inf, -torch.inf
        student.requires_grad_(True)
        found = divergence(student, teacher, kind, 2.0)
        assert found.tolist() == pytest.approx(divergence(student[:, :3], teacher[:, :3], kind, 2.0).tolist())
        found.sum().backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
        assert torch.equal(student.grad[:, 3:], torch.zeros(3, 2, dtype=torch.float64))
        assert student.grad[:, :3].abs().min() > 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_gradient_is_that_of_finite_differences(self, kind: Divergence) -> None:
        # The losses are float32, so the differences are taken wide.
        student, teacher = normal(1, 4, seed=3).requires_grad_(True), normal(1, 4, seed=4)
        divergence(student, teacher, kind, 3.0).sum().backward()
        assert student.grad is not None
        for number in range(4):
            step = torch.zeros_like(student)
            step[0, number] = 1e-2
            up, down = (divergence(student + sign * step, teacher, kind, 3.0).item() for sign in (1, -1))
            assert student.grad[0, number].item() == pytest.approx((up - down) / 2e-2, abs=1e-3)

    def test_square_of_the_temperature_keeps_the_gradient(self) -> None:
        """At high temperatures it goes to (student - teacher) / C of centred logits (Hinton et al. 2015, 2.1)."""
        student, teacher = normal(1, 6, seed=1), normal(1, 6, seed=2)
        student, teacher = student - student.mean(), teacher - teacher.mean()
        student.requires_grad_(True)
        divergence(student, teacher, Divergence.FORWARD_KL, 100.0).sum().backward()
        assert student.grad is not None
        assert torch.allclose(student.grad, (student.detach() - teacher) / 6, atol=5e-3)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("temperature", [1.0, 2.0])
    def test_top_k_has_the_rest_as_one_outcome(self, kind: Divergence, temperature: float) -> None:
        student, teacher, k = 2 * normal(4, 7, seed=1), 2 * normal(4, 7, seed=2), 3
        found = divergence_of_top(student, top_logits(teacher, k, temperature), kind, temperature)
        for number, (one, other) in enumerate(zip(student.tolist(), teacher.tolist(), strict=True)):
            kept = sorted(range(7), key=lambda c: other[c], reverse=True)[:k]
            merged = []
            for logits in (one, other):
                whole = probabilities(logits, temperature)
                merged.append([*(whole[c] for c in kept), sum(whole[c] for c in range(7) if c not in kept)])
            expected = temperature**2 * between(merged[0], merged[1], kind)
            assert found[number].item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("k", [5, 9])
    def test_all_classes_kept_are_no_difference(self, kind: Divergence, k: int) -> None:
        student, teacher = normal(3, 5, seed=1).requires_grad_(True), normal(3, 5, seed=2)
        teacher[0, 2] = -torch.inf
        whole = student.detach().clone()
        whole[0, 2] = -torch.inf
        found = divergence_of_top(whole, top_logits(teacher, k, 2.0), kind, 2.0)
        assert found.tolist() == pytest.approx(divergence(whole, teacher, kind, 2.0).tolist(), rel=1e-5)
        divergence_of_top(student[1:], top_logits(teacher[1:], k, 2.0), kind, 2.0).sum().backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()

    def test_mass_outside_the_kept_classes_is_paid_for(self) -> None:
        teacher = torch.tensor([[4.0, 3.0, 0.0, 0.0, 0.0]])
        same, elsewhere = teacher.clone(), torch.tensor([[4.0, 3.0, 6.0, 0.0, 0.0]])
        top = top_logits(teacher, 2, 1.0)
        assert divergence_of_top(same, top, Divergence.FORWARD_KL, 1.0).item() == pytest.approx(0.0, abs=1e-6)
        assert divergence_of_top(elsewhere, top, Divergence.FORWARD_KL, 1.0).item() > 1.0


class TestFeature:
    valid = torch.tensor([[True, True, True], [True, False, False]])
    tokens = places(valid)

    def test_hidden_mse(self) -> None:
        student, teacher = normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
        expected = 0.0
        for b, t in ((0, 0), (0, 1), (0, 2), (1, 0)):
            expected += sum((student[b, t, d] - teacher[b, t, d]).item() ** 2 for d in range(4)) / 4
        found = hidden_loss(student, teacher, self.tokens, HiddenLoss.MSE, 10.0)
        assert found.item() == pytest.approx(expected / 10, rel=1e-5)

    def test_hidden_cosine(self) -> None:
        student, teacher = normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
        expected = sum(
            1 - cosine(student[b, t].tolist(), teacher[b, t].tolist()) for b, t in ((0, 0), (0, 1), (0, 2), (1, 0))
        )
        found = hidden_loss(student, teacher, self.tokens, HiddenLoss.COSINE, 10.0)
        assert found.item() == pytest.approx(expected / 10, rel=1e-5)

    def attention(self, heads: int, seed: int) -> Tensor:
        """Distributions over the valid tokens."""
        scores = normal(2, heads, 3, 3, seed=seed)
        return scores.masked_fill(~self.valid[:, None, None, :], -torch.inf).softmax(-1)

    def test_attention(self) -> None:
        student, teacher = self.attention(2, seed=1), self.attention(2, seed=2)
        expected = 0.0
        for b, t in ((0, 0), (0, 1), (0, 2), (1, 0)):
            expected += sum(kl(teacher[b, h, t].tolist(), student[b, h, t].tolist()) for h in range(2)) / 2
        assert attention_loss(student, teacher, self.tokens, 10.0).item() == pytest.approx(expected / 10, rel=1e-5)

    def test_attention_of_unequal_heads_is_of_their_means(self) -> None:
        student, teacher = self.attention(2, seed=1), self.attention(3, seed=2)
        expected = sum(
            kl(teacher[b, :, t].mean(0).tolist(), student[b, :, t].mean(0).tolist())
            for b, t in ((0, 0), (0, 1), (0, 2), (1, 0))
        )
        assert attention_loss(student, teacher, self.tokens, 10.0).item() == pytest.approx(expected / 10, rel=1e-5)

    def test_attention_that_student_lacks_has_a_finite_gradient(self) -> None:
        student = torch.tensor([[[[1.0, 0.0]]]]).requires_grad_(True)
        loss = attention_loss(student, torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([0]), 1.0)
        loss.backward()
        assert student.grad is not None
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()

    @pytest.mark.parametrize(
        ("student", "teacher", "expected"),
        [
            (3, 6, [(0, 1), (1, 3), (2, 5)]),
            (4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]),
            (3, 4, [(0, 1), (1, 2), (2, 3)]),
            (2, 2, [(0, 0), (1, 1)]),
            (4, 2, [(0, 0), (1, 0), (2, 1), (3, 1)]),
            (1, 5, [(0, 4)]),
        ],
    )
    def test_layer_map(self, student: int, teacher: int, expected: list[tuple[int, int]]) -> None:
        assert layer_map(student, teacher) == expected


class TestRelation:
    def test_pool(self) -> None:
        """Two samples share a row, one has its own; -1 is padding."""
        hidden = normal(2, 4, 3)
        owner = torch.tensor([[0, 0, 1, -1], [2, 2, 2, -1]])
        expected = [hidden[0, :2].mean(0), hidden[0, 2], hidden[1, :3].mean(0)]
        assert torch.allclose(pool(hidden, owner, places(owner >= 0), 3).double(), torch.stack(expected), atol=1e-6)

    def test_distance(self) -> None:
        student, teacher, size = normal(5, 3, seed=1), normal(5, 7, seed=2), 5
        pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
        relative = []
        for rows in (student.tolist(), teacher.tolist()):
            lengths = [math.dist(rows[i], rows[j]) for i, j in pairs]
            mean = sum(lengths) / len(lengths)
            relative.append([length / mean for length in lengths])
        expected = sum(smooth_l1(a - b) for a, b in zip(*relative, strict=True)) / len(pairs)
        assert distance_loss(student, teacher).item() == pytest.approx(expected, rel=1e-4)

    def test_angle(self) -> None:
        student, teacher, size = normal(4, 3, seed=1), normal(4, 7, seed=2), 4
        total, count = 0.0, 0
        for i, j, k in itertools.permutations(range(size), 3):
            angles = [cosine((rows[i] - rows[j]).tolist(), (rows[k] - rows[j]).tolist()) for rows in (student, teacher)]
            total, count = total + smooth_l1(angles[0] - angles[1]), count + 1
        assert angle_loss(student, teacher).item() == pytest.approx(total / count, rel=1e-4)

    @pytest.mark.parametrize("loss", [distance_loss, angle_loss])
    def test_neither_scale_nor_place_nor_width_matters(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        rows = normal(6, 4)
        moved = torch.cat([3 * rows + 5, torch.zeros(6, 2, dtype=torch.float64)], dim=1)
        assert loss(moved, rows).item() == pytest.approx(0.0, abs=1e-6)
        assert loss(normal(6, 4, seed=1), rows).item() > 0.01

    @pytest.mark.parametrize("loss", [distance_loss, angle_loss])
    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_equal_rows_have_a_finite_gradient(self, loss: Callable[[Tensor, Tensor], Tensor], size: int) -> None:
        student = torch.ones(size, 3, requires_grad=True)
        value = loss(student, normal(size, 3))
        value.backward()
        assert student.grad is not None
        assert torch.isfinite(value)
        assert torch.isfinite(student.grad).all()

    def test_flow(self) -> None:
        """Sample 0 has three tokens, 1 and 2 share a row, and padding is no one's."""
        owner = [[0, 0, 0, -1], [1, 1, 2, 2]]
        student = normal(2, 4, 3, seed=1), normal(2, 4, 3, seed=2)
        teacher = normal(2, 4, 5, seed=3), normal(2, 4, 5, seed=4)
        expected = 0.0
        for row, owners in enumerate(owner):
            for q, own in enumerate(owners):
                same = [k for k, other in enumerate(owners) if own == other and own >= 0]
                squares = [
                    (
                        cosine(student[0][row, q].tolist(), student[1][row, k].tolist())
                        - cosine(teacher[0][row, q].tolist(), teacher[1][row, k].tolist())
                    )
                    ** 2
                    for k in same
                ]
                expected += sum(squares) / len(squares) if squares else 0.0
        owner_BL = torch.tensor(owner)
        loss = flow_loss(student, teacher, owner_BL, places(owner_BL >= 0), 10.0)
        assert loss.item() == pytest.approx(expected / 10, rel=1e-4)

    @pytest.mark.parametrize(("mine", "theirs"), [((2, 6), (3, 8)), ((4, 3), (4, 3))])
    def test_self_relation(self, mine: tuple[int, int], theirs: tuple[int, int]) -> None:
        """Heads and widths that differ: 12 and 24 numbers a token are cut into relation heads of 4 and 8, or of 3."""
        batch, length = 2, 3
        valid = torch.tensor([[True, True, True], [True, True, False]])
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = causal & valid[:, None, :]
        vectors = [
            [normal(batch, heads, length, width, seed=seed) for seed in seeds]
            for (heads, width), seeds in ((mine, (1, 2)), (theirs, (3, 4)))
        ]
        relation_heads = num_relation_heads(mine[0] * mine[1], theirs[0] * theirs[1], preferred=theirs[0])
        assert relation_heads == theirs[0]
        expected = 0.0
        for b, q in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
            keys = [k for k in range(length) if allowed[b, q, k]]
            for head in range(relation_heads):
                found = []
                for first, second in vectors:
                    width = first.shape[1] * first.shape[3] // relation_heads
                    part = slice(head * width, (head + 1) * width)
                    asking = first[b, :, q].flatten()[part]
                    scores = [(asking @ second[b, :, k].flatten()[part]).item() / math.sqrt(width) for k in keys]
                    found.append(probabilities(scores))
                expected += kl(found[1], found[0]) / relation_heads
        loss = self_relation_loss(
            (vectors[0][0], vectors[0][1]), (vectors[1][0], vectors[1][1]), allowed, places(valid), relation_heads, 10.0
        )
        assert loss.item() == pytest.approx(expected / 10, rel=1e-4)

    @pytest.mark.parametrize(
        ("student", "teacher", "preferred", "expected"), [(384, 768, 12, 12), (384, 1024, 16, 16), (30, 64, 8, 2)]
    )
    def test_number_of_relation_heads(self, student: int, teacher: int, preferred: int, expected: int) -> None:
        assert num_relation_heads(student, teacher, preferred) == expected
