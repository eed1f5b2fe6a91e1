"""Metrics against a reference written from the definitions, class by class and row by row."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer import losses
from finetune_trainer.batching import Batch
from finetune_trainer.metrics import ClassificationMetrics


def reference(targets: list[int], predictions: list[int]) -> dict[str, float]:
    """Accuracy and macro-F1; a class that neither occurs nor is predicted has no F1."""
    scores = []
    for label in sorted({*targets, *predictions}):
        both = sum(target == prediction == label for target, prediction in zip(targets, predictions, strict=True))
        precision = both / predictions.count(label) if label in predictions else 0.0
        recall = both / targets.count(label) if label in targets else 0.0
        scores.append(2 * precision * recall / (precision + recall) if both else 0.0)
    hits = sum(target == prediction for target, prediction in zip(targets, predictions, strict=True))
    return {"accuracy": hits / len(targets), "macroF1": sum(scores) / len(scores)}


def logits_for(predictions: list[int], num_classes: int, seed: int) -> torch.Tensor:
    """Random logits whose largest are at the predictions."""
    logits_BC = torch.rand(len(predictions), num_classes, generator=torch.Generator().manual_seed(seed))
    logits_BC[torch.arange(len(predictions)), torch.tensor(predictions)] += 1.0
    return logits_BC


def measured(targets: list[int], logits_BC: torch.Tensor, cuts: list[int]) -> dict[str, float]:
    """The metrics when the rows come in pieces."""
    metrics = ClassificationMetrics(logits_BC.shape[1])
    edges = [0, *sorted(cuts), len(targets)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            part, part_targets = logits_BC[start:end], torch.tensor(targets[start:end])
            metrics.update([], Batch({}, part_targets, 0), part, losses.cross_entropy(part, part_targets, 1.0).item())
    return metrics.compute()


@given(st.data(), st.integers(2, 12), st.integers(1, 80), st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_random_rows(data: st.DataObject, num_classes: int, num_rows: int, seed: int) -> None:
    # Some classes never occur, some are never predicted, some neither.
    pick = random.Random(seed)
    occurring = pick.sample(range(num_classes), pick.randint(1, num_classes))
    predicted = pick.sample(range(num_classes), pick.randint(1, num_classes))
    targets = [pick.choice(occurring) for _ in range(num_rows)]
    predictions = [pick.choice(predicted) for _ in range(num_rows)]
    logits_BC = logits_for(predictions, num_classes, seed)
    cuts = data.draw(st.lists(st.integers(0, num_rows), max_size=6))
    found = measured(targets, logits_BC, cuts)
    expected = reference(targets, predictions)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-12)
    assert found["macroF1"] == pytest.approx(expected["macroF1"], abs=1e-12)
    exact = [
        math.log(sum(map(math.exp, row))) - row[target]
        for row, target in zip(logits_BC.double().tolist(), targets, strict=True)
    ]
    assert found["loss"] == pytest.approx(sum(exact) / num_rows, rel=1e-5)


@pytest.mark.parametrize(
    ("targets", "predictions", "accuracy", "macro_f1"),
    [
        ([0, 1, 2], [0, 1, 2], 1.0, 1.0),
        ([0, 0, 0, 1], [0, 0, 0, 0], 0.75, 3 / 7),
        ([0, 1], [1, 0], 0.0, 0.0),
        ([0, 0, 1, 1], [0, 2, 1, 1], 0.75, (2 / 3 + 1 + 0) / 3),
    ],
)
def test_known_values(targets: list[int], predictions: list[int], accuracy: float, macro_f1: float) -> None:
    found = measured(targets, logits_for(predictions, 5, 0), [])
    assert found["accuracy"] == pytest.approx(accuracy)
    assert found["macroF1"] == pytest.approx(macro_f1)


@pytest.mark.parametrize("batch_size", [1, 3, 64, 1000])
def test_loss_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BC = 5 * torch.randn(1000, 7, generator=generator)
    targets = torch.randint(7, (1000,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits_BC.double(), targets).item()
    found = measured(targets.tolist(), logits_BC, list(range(batch_size, 1000, batch_size)))
    assert found["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_loss_that_is_not_finite_stays_so() -> None:
    metrics = ClassificationMetrics(2)
    metrics.update([], Batch({}, torch.tensor([0]), 0), torch.tensor([[math.nan, 0.0]]), math.nan)
    metrics.update([], Batch({}, torch.tensor([0]), 0), torch.tensor([[1.0, 0.0]]), 0.3)
    assert math.isnan(metrics.compute()["loss"])


def test_ten_thousand_classes_take_little_memory() -> None:
    metrics = ClassificationMetrics(10_000)
    metrics.update([], Batch({}, torch.arange(64), 0), torch.eye(10_000)[:64], 1.0)
    tensors = [value for value in vars(metrics).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) < 2**20
    assert metrics.compute()["accuracy"] == 1.0
