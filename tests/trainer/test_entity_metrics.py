"""Entity F1 against conlleval's rules written once more, over random tags; and rows that come in pieces."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.batching import NO_UNIT, Batch, Example
from finetune_trainer.entity_metrics import EntityCounts, EntityMetrics, TagScheme, entity_type, without_prefix

TYPES = ("PER", "LOC", "PER-X")
IOB = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in TYPES)]
BIOES = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in TYPES)]


def conlleval_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities by the tables startOfChunk and endOfChunk of conlleval.pl, rule by rule (as seqeval has them)."""
    split = [("O", "") if tag == "O" else (tag[0], tag[2:]) for tag in tags] + [("O", "")]
    spans, begin = [], 0
    previous, previous_type = "O", ""
    for place, (tag, kind) in enumerate(split):
        ends = (
            (previous, tag) in {("B", "B"), ("B", "S"), ("B", "O"), ("I", "B"), ("I", "S"), ("I", "O")}
            or previous in ("E", "S")
            or (previous != "O" and previous_type != kind)
        )
        starts = (
            tag in ("B", "S")
            or (previous, tag) in {("E", "E"), ("E", "I"), ("S", "E"), ("S", "I"), ("O", "E"), ("O", "I")}
            or (tag != "O" and previous_type != kind)
        )
        if ends:
            spans.append((previous_type, begin, place - 1))
        if starts:
            begin = place
        previous, previous_type = tag, kind
    return spans


def reference_f1(predicted: Sequence[Sequence[str]], actual: Sequence[Sequence[str]]) -> float:
    found = {(row, span) for row, tags in enumerate(predicted) for span in conlleval_spans(tags)}
    wanted = {(row, span) for row, tags in enumerate(actual) for span in conlleval_spans(tags)}
    if not found & wanted:
        return 0.0
    precision, recall = len(found & wanted) / len(found), len(found & wanted) / len(wanted)
    return 2 * precision * recall / (precision + recall)


def numbers(tags: Sequence[str], labels: Sequence[str]) -> list[int]:
    return [labels.index(tag) for tag in tags]


@given(st.lists(st.sampled_from(BIOES), max_size=12))
def test_spans_are_those_of_conlleval(tags: list[str]) -> None:
    assert TagScheme.of(BIOES).spans(numbers(tags, BIOES)) == conlleval_spans(tags)


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.sampled_from([IOB, BIOES]), st.integers(1, 6))
def test_f1_is_that_of_conlleval(generator: random.Random, labels: list[str], num_rows: int) -> None:
    actual = [generator.choices(labels, k=generator.randrange(1, 10)) for _ in range(num_rows)]
    predicted = [[generator.choice([tag, generator.choice(labels)]) for tag in row] for row in actual]
    counts = EntityCounts(TagScheme.of(labels))
    for one, other in zip(predicted, actual, strict=True):
        counts.add(numbers(one, labels), numbers(other, labels))
    assert counts.f1() == pytest.approx(reference_f1(predicted, actual), abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "actual", "f1"),
    [
        # The examples of seqeval's own documentation and of conlleval's rules, by hand.
        ("O O B-LOC I-LOC I-LOC I-LOC O", "O O O B-LOC I-LOC I-LOC O", 0.0),
        ("B-PER I-PER O", "B-PER I-PER O", 1.0),
        ("I-PER I-PER O", "B-PER I-PER O", 1.0),  # an I- after O starts an entity
        ("B-PER B-PER O", "B-PER I-PER O", 0.0),
        ("B-PER I-LOC O", "B-PER I-PER O", 0.0),
        ("B-PER I-PER B-LOC", "B-PER I-PER O", 2 / 3),
        ("O O O", "B-PER I-PER O", 0.0),
        ("O O O", "O O O", 0.0),
    ],
)
def test_by_hand(predicted: str, actual: str, f1: float) -> None:
    counts = EntityCounts(TagScheme.of(IOB))
    counts.add(numbers(predicted.split(), IOB), numbers(actual.split(), IOB))
    assert counts.f1() == pytest.approx(f1)


@pytest.mark.parametrize("labels", [["O", *"BILU"], ["O", *"BIES"]])
def test_bilou_is_bioes_by_other_letters(labels: list[str]) -> None:
    tags = [labels[0], *(f"{letter}-X" for letter in labels[1:])]
    outside, begin, inside, last, unit = range(5) if labels[3] == "L" else (0, 1, 2, 3, 4)
    row = [begin, inside, last, unit, last, inside, outside]
    assert TagScheme.of(tags).spans(row) == [("X", 0, 2), ("X", 3, 3), ("X", 4, 4), ("X", 5, 5)]


def test_plain_tags_are_entities_as_long_as_they_last() -> None:
    labels = ["O", "E-mail", "Name"]  # not all have a prefix, so none counts as one
    assert TagScheme.of(labels).spans([1, 1, 0, 2, 1, 2, 2]) == [
        ("E-mail", 0, 1), ("Name", 3, 3), ("E-mail", 4, 4), ("Name", 5, 6)
    ]  # fmt: skip


def test_types_and_mixtures() -> None:
    assert [entity_type(tag) for tag in ("B-PER", "I-A-B", "O", "Name", "E-")] == ["PER", "A-B", "O", "Name", "E-"]
    assert without_prefix(["O", "B-A", "I-A", "RIVER", "CITY"]) == ["CITY", "RIVER"]
    assert without_prefix(["O", "B-A", "E-mail", "RIVER"]) == []


def test_rows_in_pieces_are_scored_whole() -> None:
    """An entity over the cut is one entity, whichever piece comes first and whatever batch it comes in."""
    labels = ["O", "B-A", "I-A"]
    row = [1, 2, 2, 0, 1]
    target = [NO_UNIT, 1, 2, NO_UNIT], [NO_UNIT, 2, 0, 1]
    pieces = [
        Example([5] * 4, None, target[0], row=7, window=0),
        Example([5] * 4, None, target[1], row=7, window=1),
    ]
    other = Example([5] * 3, None, [NO_UNIT, 1, 0], row=8)
    for order in ([pieces[1], other, pieces[0]], [pieces[0], pieces[1], other]):
        metrics = EntityMetrics(TagScheme.of(labels), {7: 2})
        for example in order:
            add(metrics, example, [tag for tag in example.target if tag != NO_UNIT])  # type: ignore[union-attr]
        assert metrics.compute() == {"entityF1": 1.0, "accuracy": 1.0, "loss": 0.5}
        assert metrics._counts.actual == len(TagScheme.of(labels).spans(row)) + 1
    metrics = EntityMetrics(TagScheme.of(labels), {7: 2})
    add(metrics, pieces[1], [1, 0, 1])  # right but for the first word: the entity over the cut is cut in two
    add(metrics, pieces[0], [1, 2])
    assert metrics.compute()["entityF1"] == pytest.approx(2 * 1 / (3 + 2))
    assert metrics.compute()["accuracy"] == 0.8


def add(metrics: EntityMetrics, example: Example, predicted: list[int]) -> None:
    logits_UC = torch.nn.functional.one_hot(torch.tensor(predicted), 3).float()
    targets = torch.tensor([tag for tag in example.target if tag != NO_UNIT])  # type: ignore[union-attr]
    metrics.update([example], Batch({}, targets, 4), logits_UC, 0.5 * len(targets))
