"""Metrics of extracted answers, as SQuAD's official script has them; of a row only its best answer so far is kept.

Legend of tensor shapes: B windows, L tokens, U units (two a window: the answer's start and its end), C = L classes.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune_trainer.batching import Batch, Example

MAX_ANSWER_TOKENS = 30
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row's answer is judged by."""

    context: str
    answers: tuple[str, ...]
    """All that are right; none where the context has no answer."""
    num_windows: int


@dataclass(frozen=True, slots=True)
class AnswerWindow:
    """Where in a window an answer may be."""

    null: int
    """The token that stands for "no answer"."""
    first: int
    """The first token of the context."""
    last: int
    """The last one."""
    places: Sequence[tuple[int, int]] = ()
    """Where each of the context's tokens stands in it; left out where nothing is judged."""


Windows = Mapping[tuple[int, int], AnswerWindow]
"""By the row and the number of the window in it."""


def normalise(answer: str) -> str:
    """Without regard to case, punctuation, articles and spaces (Rajpurkar et al. 2016, section 6.1)."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers; of an unanswerable question, if it is empty."""
    return float(normalise(predicted) in _wanted(answers))


def token_f1(predicted: str, answers: Sequence[str]) -> float:
    """F1 over words, the best of all answers; of an unanswerable question 1 if the prediction is empty, else 0."""
    return max(_overlap(normalise(predicted).split(), wanted.split()) for wanted in _wanted(answers))


def best_spans(start_BL: Tensor, end_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The span with the highest sum of its ends' logits: that sum, its first and its last token, each [B].

    Over all spans of at most MAX_ANSWER_TOKENS; impossible ends have a logit of -inf.
    """
    best_B = torch.full_like(start_BL[:, 0], -math.inf)
    first_B = torch.zeros(len(start_BL), dtype=torch.int64, device=start_BL.device)
    last_B = first_B.clone()
    num_tokens = start_BL.shape[1]
    for further in range(min(MAX_ANSWER_TOKENS, num_tokens)):
        score_B, place_B = (start_BL[:, : num_tokens - further] + end_BL[:, further:]).max(1)
        is_better_B = score_B > best_B
        best_B = torch.where(is_better_B, score_B, best_B)
        first_B = torch.where(is_better_B, place_B, first_B)
        last_B = torch.where(is_better_B, place_B + further, last_B)
    return best_B, first_B, last_B


def text_between(context: str, start: int, end: int) -> str:
    """What tokens say between two characters, with the accents of the last one, which many tokenizers leave out."""
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return context[start:end].strip()


@dataclass(slots=True)
class _Candidate:
    """The best answer of a row in the windows that have come so far."""

    num_windows: int = 0
    score: float = -math.inf
    text: str = ""
    null_score: float = math.inf
    """The lowest of the windows' scores for "no answer": one window that has the answer is enough."""


class AnswerMetrics:
    """Exact match, F1 and mean loss over units, independent of how rows are batched.

    A row's answer is the best span of all its windows; none if "no answer" scores higher and such rows are in the data
    (Devlin et al. 2019, section 4.3, with a threshold of 0).
    """

    def __init__(self, asked: Mapping[int, Asked], windows: Windows, may_be_unanswerable: bool) -> None:
        self._asked = asked
        self._windows = windows
        self._may_be_unanswerable = may_be_unanswerable
        self._candidates: dict[int, _Candidate] = {}
        self._rows = 0
        self._exact = 0.0
        self._f1 = 0.0
        self._units = 0
        self._loss_sum = 0.0

    def update(self, examples: Sequence[Example], batch: Batch, logits_UC: Tensor, loss_sum: float) -> None:
        """Add a batch; its units are starts and ends, by turns."""
        windows = [self._windows[example.row, example.window] for example in examples]
        start_BL, end_BL = logits_UC.float().unflatten(0, (-1, 2)).unbind(1)
        null_B = torch.tensor([window.null for window in windows], device=logits_UC.device).unsqueeze(1)
        null_scores = (start_BL.gather(1, null_B) + end_BL.gather(1, null_B)).squeeze(1).tolist()
        outside_BL = _outside(windows, start_BL)
        found = best_spans(start_BL.masked_fill(outside_BL, -math.inf), end_BL.masked_fill(outside_BL, -math.inf))
        scores, firsts, lasts = (part.tolist() for part in found)
        for number, (example, window) in enumerate(zip(examples, windows, strict=True)):
            span = (firsts[number] - window.first, lasts[number] - window.first)
            self._add(example.row, window, scores[number], span, null_scores[number])
        self._units += int((batch.targets >= 0).sum())
        self._loss_sum += loss_sum

    def compute(self) -> dict[str, float]:
        """The metrics so far, over the rows that have come whole."""
        rows = max(1, self._rows)
        return {
            "exactMatch": self._exact / rows,
            "f1": self._f1 / rows,
            "loss": self._loss_sum / max(1, self._units),
        }

    def _add(self, row: int, window: AnswerWindow, score: float, span: tuple[int, int], null_score: float) -> None:
        asked = self._asked[row]
        candidate = self._candidates.setdefault(row, _Candidate())
        candidate.num_windows += 1
        candidate.null_score = min(candidate.null_score, null_score)
        if score > candidate.score:
            candidate.score = score
            candidate.text = text_between(asked.context, window.places[span[0]][0], window.places[span[1]][1])
        if candidate.num_windows == asked.num_windows:
            self._score(asked, self._candidates.pop(row))

    def _score(self, asked: Asked, candidate: _Candidate) -> None:
        is_none = self._may_be_unanswerable and candidate.null_score > candidate.score
        predicted = "" if is_none else candidate.text
        self._rows += 1
        self._exact += exact_match(predicted, asked.answers)
        self._f1 += token_f1(predicted, asked.answers)


def _wanted(answers: Sequence[str]) -> list[str]:
    """The answers as they are compared; those of nothing but articles and punctuation are none."""
    return [answer for answer in map(normalise, answers) if answer] or [""]


def _overlap(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted))


def _outside(windows: Sequence[AnswerWindow], logits_BL: Tensor) -> Tensor:
    """Where no answer can be: outside the context [B, L]."""
    token_L = torch.arange(logits_BL.shape[1], device=logits_BL.device)
    first_B, last_B = torch.tensor([(window.first, window.last) for window in windows], device=logits_BL.device).T
    return (token_L < first_B.unsqueeze(1)) | (token_L > last_B.unsqueeze(1))
