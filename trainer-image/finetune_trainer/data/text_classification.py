"""Rows to labelled texts: checked, de-duplicated, split, with a label map made from the training rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns
from finetune_trainer.data.columns import is_unicode, text_in, value_in
from finetune_trainer.data.formats import Row, shown
from finetune_trainer.data.labels import one_name_each
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Part, Rows
from finetune_trainer.data.rows import load as load_rows
from finetune_trainer.data.selection import normalise
from finetune_trainer.errors import TrainerError

_MAX_LABELS = 10_000
_SHOWN = 5
_EXACT = 2.0**53
"""From there on not every whole number has a float of its own."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One usable row."""

    text: str
    pair: str | None
    label: str
    place: str

    def key(self) -> str:
        """The text as it counts for duplicates."""
        return normalise(self.text) + ("\n" + normalise(self.pair) if self.pair is not None else "")


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """The data of a text classification job."""

    rows: Rows[LabelledText]
    labels: tuple[str, ...]
    """All labels, sorted (integers by value); the index is the class number."""

    def majority(self) -> dict[str, float]:
        """Accuracy and macro-F1, on the evaluation rows, of always saying the label most frequent in training."""
        counts = Counter(row.label for row in self.rows.train.rows)
        most_frequent = max(counts.items(), key=lambda item: (item[1], item[0]))[0]
        actual = [row.label for row in self.rows.evaluation.rows]
        hits, rows = actual.count(most_frequent), len(actual)
        # Of every other class that occurs it finds no row: an F1 of 0.
        f1 = 2 * hits / (rows + hits) / len({most_frequent, *actual})
        return {"accuracy": hits / rows, "macroF1": f1}


def load(run: Run) -> LabelledTexts:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    rows = load_rows(run, _check)
    others = [part for part in (rows.evaluation, rows.replay, rows.retention) if part is not None]
    name = one_name_each(row.label for row in rows.train.rows)
    for part in (rows.train, *others):
        part.rows[:] = [replace(row, label=name(row.label)) for row in part.rows]
    labels = _labels(rows.train.rows, rows.train.report)
    for part in others:
        _check_labels_known(part, labels)
    return LabelledTexts(rows, labels)


def _check(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> LabelledText | None:
    """The row as a labelled text, or None when it is dropped."""
    text = text_in(row, columns.text or "text", "text", report)
    pair = text_in(row, columns.text_pair, "textPair", report) if columns.text_pair else None
    label = _label(row, columns.label or "label", report) if is_labelled else ""
    if not text.strip() or (pair is not None and not pair.strip()):
        report.drop_unusable("with empty text", row.place)
    elif is_labelled and not label:
        report.drop_unusable("without label", row.place)
    elif not all(map(is_unicode, (text, pair or "", label))):
        report.drop_unusable("with half a character", row.place)
    else:
        return LabelledText(text, pair, label, row.place)
    return None


def _label(row: Row, column: str, report: DataReport) -> str:
    """The label in a column by its name; empty where there is none."""
    value = value_in(row, column, "label", report)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))  # a table with a missing number has made floats of the others
    if value is None or isinstance(value, int | str):
        return "" if value is None else str(value).strip()
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{report.source} {row.place}: the label {shown(value)} is of type {type(value).__name__}, "
        "not a string, whole number or boolean",
        f"write labels as names; is {column!r} the right column for data.columns.label?",
    )


def _labels(train: list[LabelledText], report: DataReport) -> tuple[str, ...]:
    labels = {row.label for row in train}
    if len(labels) < 2:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report}; the only label is {shown(*labels)}",
            "classification needs rows of at least two labels",
        )
    if len(labels) > _MAX_LABELS:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source}: {len(labels)} different labels",
            f"at most {_MAX_LABELS} can be learnt; is data.columns.label the right column?",
        )
    # Class 10 comes after class 9, as whoever wrote the numbers meant it.
    integers = all(map(_INTEGER.fullmatch, labels))
    return tuple(sorted(labels, key=lambda label: (int(label) if integers else 0, label)))


def _check_labels_known(part: Part[LabelledText], labels: tuple[str, ...]) -> None:
    known = set(labels)
    unseen = Counter(row.label for row in part.rows if row.label not in known)
    if not unseen:
        return
    first = next(row for row in part.rows if row.label in unseen)
    counts = ", ".join(f"{shown(label)} ({count} rows)" for label, count in unseen.most_common(_SHOWN))
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{part.report.source} {first.place}: labels that the training data never shows: {counts}; it has "
        + ", ".join(map(shown, labels[:_SHOWN]))
        + (", ..." if len(labels) > _SHOWN else ""),
        nearest(first.label, list(labels)) or "put rows of every label into the training data",
    )
