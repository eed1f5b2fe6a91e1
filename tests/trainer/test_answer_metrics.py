"""SQuAD's measures against the official script written once more, and the search for the best span by trying all."""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer import answer_metrics
from finetune_trainer.answer_metrics import AnswerMetrics, AnswerWindow, Asked, best_spans, exact_match, token_f1
from finetune_trainer.batching import UNLABELED, Batch, Example


def official_normalize(text: str) -> str:
    """normalize_answer of SQuAD's evaluate-v2.0.py, step by step."""
    text = text.lower()
    text = "".join(character for character in text if character not in set(string.punctuation))
    text = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text)
    return " ".join(text.split())


def official_f1(gold: str, predicted: str) -> float:
    """compute_f1 of the same."""
    gold_tokens = official_normalize(gold).split() if gold else []
    predicted_tokens = official_normalize(predicted).split() if predicted else []
    if len(gold_tokens) == 0 or len(predicted_tokens) == 0:
        return float(gold_tokens == predicted_tokens)
    num_same = sum((Counter(gold_tokens) & Counter(predicted_tokens)).values())
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(predicted_tokens), num_same / len(gold_tokens)
    return (2 * precision * recall) / (precision + recall)


def official_scores(answers: Sequence[str], predicted: str) -> tuple[float, float]:
    """What get_raw_scores of the same has for one question."""
    golds = [answer for answer in answers if official_normalize(answer)] or [""]
    exact = max(float(official_normalize(gold) == official_normalize(predicted)) for gold in golds)
    return exact, max(official_f1(gold, predicted) for gold in golds)


TEXT = st.lists(
    st.sampled_from(
        ["the", "a", "An", "Ada", "ada", "Oslo", "in", "1990", "-", "U.S.", "é", "\U0001f600", "'", "theme"]
    ),
    max_size=6,
).map(" ".join)


@settings(max_examples=500)
@given(st.lists(TEXT, max_size=3), TEXT)
def test_scores_are_those_of_the_official_script(answers: list[str], predicted: str) -> None:
    exact, f1 = official_scores(answers, predicted)
    assert exact_match(predicted, answers) == exact
    assert token_f1(predicted, answers) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
    ("predicted", "answers", "exact", "f1"),
    [
        ("The Norman Empire!", ["norman  empire"], 1, 1),
        ("France.", ["in France", "France"], 1, 1),
        ("in the city of Paris", ["Paris"], 0, 2 / 5),
        ("Paris Paris", ["Paris"], 0, 2 / 3),
        ("", [], 1, 1),
        ("Paris", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", ["a"], 1, 1),  # nothing is left of either
        ("U.S.", ["US"], 1, 1),
        ("é", ["e"], 0, 0),
    ],
)
def test_by_hand(predicted: str, answers: list[str], exact: float, f1: float) -> None:
    assert exact_match(predicted, answers) == exact
    assert token_f1(predicted, answers) == pytest.approx(f1)


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_best_span_is_that_of_all(monkeypatch: pytest.MonkeyPatch, longest: int) -> None:
    monkeypatch.setattr(answer_metrics, "MAX_ANSWER_TOKENS", longest)
    generator = torch.Generator().manual_seed(longest)
    start_BL, end_BL = torch.randn(2, 40, 12, generator=generator)
    start_BL[torch.rand(40, 12, generator=generator) < 0.3] = -math.inf
    end_BL[torch.rand(40, 12, generator=generator) < 0.3] = -math.inf
    scores, firsts, lasts = best_spans(start_BL, end_BL)
    for row in range(40):
        spans = [(first, last) for first in range(12) for last in range(first, min(12, first + longest))]
        sums = {span: (start_BL[row, span[0]] + end_BL[row, span[1]]).item() for span in spans}
        best = max(sums.values())
        assert scores[row].item() == best
        if best > -math.inf:
            assert sums[firsts[row].item(), lasts[row].item()] == best


CONTEXT = "Ada sings in Oslo"
PLACES = [(0, 3), (4, 9), (10, 12), (13, 17)]


def window(places: Sequence[tuple[int, int]] = PLACES) -> AnswerWindow:
    """[CLS] question [SEP] context [SEP]"""
    return AnswerWindow(null=0, first=3, last=3 + len(places) - 1, places=places)


class Rows:
    """Rows of windows over CONTEXT, and the logits that a model gives for them."""

    def __init__(self, answers: Sequence[str], num_windows: int = 1, may_be_unanswerable: bool = True) -> None:
        self.metrics = AnswerMetrics(
            {0: Asked(CONTEXT, tuple(answers), num_windows)},
            {(0, number): window() for number in range(num_windows)},
            may_be_unanswerable,
        )

    def see(self, number: int, start: dict[int, float], end: dict[int, float], loss: float = 1.0) -> None:
        logits_UC = torch.full((2, 9), -10.0)
        for line, scores in zip(logits_UC, (start, end), strict=True):
            for token, score in scores.items():
                line[token] = score
        example = Example([1] * 9, None, (3, 3), row=0, window=number)
        self.metrics.update([example], Batch({}, torch.tensor([3, 3]), 9), logits_UC, loss)

    def scores(self) -> tuple[float, float]:
        found = self.metrics.compute()
        return found["exactMatch"], found["f1"]


class TestDecision:
    def test_span(self) -> None:
        rows = Rows(["in Oslo"])
        rows.see(0, {5: 5.0}, {6: 5.0})
        assert rows.scores() == (1.0, 1.0)

    def test_no_answer_when_it_scores_higher(self) -> None:
        rows = Rows([])
        rows.see(0, {0: 5.1, 3: 5.0}, {0: 5.0, 3: 5.0})
        assert rows.scores() == (1.0, 1.0)

    def test_an_answer_when_both_score_the_same(self) -> None:
        rows = Rows(["Ada"])
        rows.see(0, {0: 5.0, 3: 5.0}, {0: 5.0, 3: 5.0})
        assert rows.scores() == (1.0, 1.0)

    def test_always_an_answer_where_all_rows_have_one(self) -> None:
        rows = Rows(["Ada"], may_be_unanswerable=False)
        rows.see(0, {0: 9.0, 3: 5.0}, {0: 9.0, 3: 5.0})
        assert rows.scores() == (1.0, 1.0)

    def test_neither_question_nor_padding_nor_backwards(self) -> None:
        rows = Rows(["in"])
        rows.see(0, {1: 9.0, 8: 9.0, 6: 4.0, 5: 3.0}, {1: 9.0, 8: 9.0, 3: 4.0, 5: 3.5})
        assert rows.scores() == (1.0, 1.0)

    def test_the_best_of_all_windows(self) -> None:
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
            rows = Rows(["Oslo"], num_windows=3)
            seen = {
                0: ({3: 2.0, 0: 1.0}, {3: 2.0, 0: 1.0}),
                1: ({6: 3.0, 0: -5.0}, {6: 3.0, 0: -5.0}),
                2: ({0: 9.0}, {0: 9.0}),
            }
            for number in order:
                rows.see(number, *seen[number])
            # Two windows say that there is none, one that there is: that is enough.
            assert rows.scores() == (1.0, 1.0)

    def test_no_answer_when_no_window_has_one(self) -> None:
        rows = Rows([], num_windows=2)
        rows.see(0, {3: 2.0, 0: 4.0}, {3: 2.0, 0: 4.0})
        rows.see(1, {3: 3.0, 0: 5.0}, {3: 3.0, 0: 5.0})
        assert rows.scores() == (1.0, 1.0)

    def test_a_row_counts_when_it_is_whole(self) -> None:
        rows = Rows(["Ada"], num_windows=2)
        rows.see(0, {3: 5.0}, {3: 5.0})
        assert rows.scores() == (0.0, 0.0)
        assert len(rows.metrics._candidates) == 1
        rows.see(1, {3: 4.0}, {3: 4.0})
        assert rows.scores() == (1.0, 1.0)
        assert not rows.metrics._candidates  # nothing is kept of a row that is scored


def test_loss_is_over_units_that_are_known() -> None:
    metrics = AnswerMetrics({0: Asked(CONTEXT, ("Ada",), 2)}, {(0, 0): window(), (0, 1): window()}, True)
    examples = [Example([1] * 9, None, (3, 3), 0, window=0), Example([1] * 9, None, (UNLABELED,) * 2, 0, window=1)]
    batch = Batch({}, torch.tensor([3, 3, UNLABELED, UNLABELED]), 18)
    metrics.update(examples, batch, torch.zeros(4, 9), 3.0)
    assert metrics.compute()["loss"] == 1.5


def test_random_batches_give_the_same() -> None:
    generator, shuffler = torch.Generator().manual_seed(0), random.Random(0)
    asked = {row: Asked(CONTEXT, ("Ada",) if row % 2 else (), 1 + row % 3) for row in range(20)}
    keys = [(row, number) for row, one in asked.items() for number in range(one.num_windows)]
    logits = {key: torch.randn(2, 9, generator=generator) for key in keys}
    results = []
    for size in (1, 4, 64):
        shuffler.shuffle(keys)
        metrics = AnswerMetrics(asked, dict.fromkeys(keys, window()), True)
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            examples = [Example([1] * 9, None, (0, 0), row, window=number) for row, number in part]
            targets = torch.zeros(2 * len(part), dtype=torch.int64)
            metrics.update(examples, Batch({}, targets, 9), torch.cat([logits[key] for key in part]), len(part))
        results.append(metrics.compute())
    assert results[0] == results[1] == results[2]
    assert 0 < results[0]["exactMatch"] < 1
