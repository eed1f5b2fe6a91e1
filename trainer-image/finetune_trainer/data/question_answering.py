"""Rows to questions with their texts and answers: checked, de-duplicated, split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns
from finetune_trainer.data.columns import is_unicode, of_wrong_type, text_in, value_in
from finetune_trainer.data.formats import Row
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Part, Rows
from finetune_trainer.data.rows import load as load_rows
from finetune_trainer.data.selection import hold_out, normalise, without_those_in
from finetune_trainer.errors import TrainerError

Answer = tuple[str, int]
"""An answer as the context has it, and the character it begins at."""


@dataclass(frozen=True, slots=True)
class Question:
    """One usable row."""

    question: str
    context: str
    answers: tuple[Answer, ...] | None
    """All that are right, none where the context has no answer; None in a row without labels."""
    place: str
    label: str = ""

    def key(self) -> str:
        """Question and context as they count for duplicates."""
        return f"{normalise(self.question)}\n{normalise(self.context)}"


@dataclass(frozen=True, slots=True)
class Questions:
    """The data of a question answering job."""

    rows: Rows[Question]
    may_be_unanswerable: bool
    """Whether a training or evaluation row has no answer."""

    def share_unanswerable(self) -> float:
        """Exact match and F1, on the evaluation rows, of never giving an answer."""
        rows = self.rows.evaluation.rows
        return sum(not row.answers for row in rows) / len(rows)


def load(run: Run) -> Questions:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    rows = load_rows(run, _check)
    if run.spec.data.evaluation is None:
        rows = _with_contexts_apart(rows, run.spec.data.held_out_fraction(), run.spec.training.seed)
    if not any(row.answers for row in rows.train.rows):
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{rows.train.report}; none of the training rows has an answer",
            "set data.columns.answers to the column of SQuAD's {text: [...], answer_start: [...]}",
        )
    may_be = any(row.answers == () for part in (rows.train, rows.evaluation) for row in part.rows)
    return Questions(rows, may_be)


@dataclass(frozen=True, slots=True)
class _ByContext:
    """A question, to be held out with all others about its context."""

    question: Question
    place: str = ""
    label: str = ""

    def key(self) -> str:
        return normalise(self.question.context)


def _with_contexts_apart(rows: Rows[Question], fraction: float, seed: int) -> Rows[Question]:
    """Hold out whole contexts, as SQuAD does: a question about a text that others were learnt from is an easy one.

    Where there is one context only, the questions stay held out one by one.
    """
    everything = [_ByContext(row) for row in (*rows.train.rows, *rows.evaluation.rows)]
    train, held = hold_out(everything, fraction, seed)
    if not held:
        return rows
    report = rows.train.report
    report.num_held_out = len(held)
    evaluation = [one.question for one in held]
    replay = rows.replay
    if replay is not None:  # it was kept apart from the rows that were to be held out at first
        unseen = without_those_in(replay.rows, evaluation, "also in the evaluation data", replay.report)
        replay.report.num_kept = len(unseen)
        replay = Part(unseen, replay.report)
    return replace(
        rows, train=Part([one.question for one in train], report), evaluation=Part(evaluation, report), replay=replay
    )


def _check(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> Question | None:
    """The row as a question, or None when it is dropped."""
    question = text_in(row, columns.question or "question", "question", report)
    context = text_in(row, columns.context or "context", "context", report)
    given = _given_answers(row, columns.answers or "answers", report) if is_labelled else None
    if not question.strip() or not context.strip():
        report.drop_unusable("with empty question" if not question.strip() else "with empty context", row.place)
        return None
    if is_labelled and given is None:
        report.drop_unusable("without answers", row.place)
        return None
    if not is_unicode(question + context):
        report.drop_unusable("with half a character", row.place)
        return None
    if given is None:
        return Question(question, context, None, row.place)
    answers = _placed(given, context, report, row.place)
    if given and not answers:
        report.drop_unusable("with an answer that is not in the context", row.place)
        return None
    return Question(question, context, answers, row.place)


def _placed(given: list[Answer], context: str, report: DataReport, place: str) -> tuple[Answer, ...]:
    """The answers where the context has them. One that is elsewhere, and there only once, is mended."""
    placed, is_mended = [], False
    for text, start in given:
        if start < 0 or not context.startswith(text, start):
            start = _only_place(text, context)
            is_mended = is_mended or start >= 0
        if start >= 0:
            inner = text.strip()
            placed.append((inner, start + text.index(inner)))
    if placed and len(placed) < len(given):
        report.note("with one of several answers left out, because it is not in the context", place)
    if placed and is_mended:
        report.note("with a wrong answer_start, mended", place)
    return tuple(placed)


def _only_place(text: str, context: str) -> int:
    """Where a text is in the context if it is there once, else -1."""
    start = context.find(text)
    return start if start >= 0 and context.find(text, start + 1) < 0 else -1


def _given_answers(row: Row, column: str, report: DataReport) -> list[Answer] | None:
    """The answers in a column, empty ones left out; None where the column is empty."""
    value = value_in(row, column, "answers", report)
    if value is None:
        return None
    try:
        return [(text, start) for text, start in _pairs(value) if text.strip()]
    except (KeyError, TypeError, ValueError, AttributeError):
        wanted = "SQuAD's {text: [strings], answer_start: [integers]}, both of one length"
        raise of_wrong_type(row, "answers", value, wanted, column, report) from None


def _pairs(value: Any) -> Iterator[Answer]:
    """Texts with their starts, of a map of two lists or of a list of maps. Raises whatever another form leads to."""
    if isinstance(value, list):
        value = {name: [answer[name] for answer in value] for name in ("text", "answer_start")}
    texts, starts = value["text"], value["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list):
        raise TypeError("not lists")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise TypeError("not a string and an integer")
        yield text, start
