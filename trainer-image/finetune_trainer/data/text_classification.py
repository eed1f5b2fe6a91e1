"""Rows to labelled texts: checked, de-duplicated, split, with a label map made from the training rows."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns, DataSource
from finetune_trainer.data.formats import Row, shown
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.selection import hold_out, normalise, without_leaks, without_repeats
from finetune_trainer.data.sources import EVALUATION_SPLITS, TRAIN_SPLITS, read_rows
from finetune_trainer.errors import TrainerError

DEFAULT_SPLIT_FRACTION = 0.1
_MAX_LABELS = 10_000
_SHOWN = 5
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One usable row."""

    text: str
    pair: str | None
    label: str
    place: str

    def key(self) -> str:
        """The text as it counts for duplicates: without regard to case, punctuation and spaces."""
        return normalise(self.text) + ("\n" + normalise(self.pair) if self.pair is not None else "")


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """The data of a text classification job."""

    train: list[LabelledText]
    evaluation: list[LabelledText]
    labels: tuple[str, ...]
    """All labels, sorted (integers by value); the index is the class number."""
    reports: tuple[DataReport, ...]
    """Of the training source, and of the evaluation source if there is one of its own."""

    def majority_fraction(self) -> float:
        """Accuracy, on the evaluation rows, of always saying the label most frequent in the training rows."""
        most_frequent = max(Counter(row.label for row in self.train).items(), key=lambda item: (item[1], item[0]))[0]
        return sum(row.label == most_frequent for row in self.evaluation) / len(self.evaluation)


def load(run: Run) -> LabelledTexts:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    data = run.spec.data
    train, train_report = _read_source(data.train, run, TRAIN_SPLITS)
    reports = [train_report]
    if data.deduplicate:
        train = without_repeats(train, train_report)
    if data.evaluation is not None:
        evaluation, evaluation_report = _read_source(data.evaluation, run, EVALUATION_SPLITS)
        reports.append(evaluation_report)
        if data.deduplicate:
            train = without_leaks(train, evaluation, train_report)
    else:
        fraction = data.split_fraction or DEFAULT_SPLIT_FRACTION
        train, evaluation = _held_out(train, fraction, run.spec.training.seed, train_report)
    reports[0].num_kept += len(train)
    reports[-1].num_kept += len(evaluation)
    labels = _labels(train, train_report)
    _check_labels_known(evaluation, labels, reports[-1])
    return LabelledTexts(train, evaluation, labels, tuple(reports))


def _held_out(
    rows: list[LabelledText], fraction: float, seed: int, report: DataReport
) -> tuple[list[LabelledText], list[LabelledText]]:
    train, evaluation = hold_out(rows, fraction, seed)
    if not evaluation:
        num_labels = len({row.label for row in rows})
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source}: of {len(rows)} usable rows with {num_labels} labels none can be held out for evaluation",
            "give data.evaluation, or at least two different texts for every label",
        )
    report.num_held_out = len(evaluation)
    return train, evaluation


def _read_source(source: DataSource, run: Run, splits: tuple[str, ...]) -> tuple[list[LabelledText], DataReport]:
    report = DataReport(source.uri)
    texts = [text for row in read_rows(source, run, splits) if (text := _check(row, run.spec.data.columns, report))]
    limit = run.spec.data.max_dropped_fraction
    if report.num_read == 0:
        raise TrainerError(ExitCode.DATA_INVALID, f"{source.uri}: no rows", "the file is empty; check the uri")
    if not texts or report.unusable_fraction > limit:
        report.num_kept = len(texts)
        share = "all rows are" if not texts else f"{report.unusable_fraction:.1%} of the rows are"
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report}; {share} unusable",
            f"mend the rows, or raise data.maxDroppedFraction (now {limit:g})"
            if texts
            else "mend the rows, or set data.columns to the right ones",
        )
    return texts, report


def _check(row: Row, columns: Columns, report: DataReport) -> LabelledText | None:
    """The row as a labelled text, or None when it is dropped."""
    report.num_read += 1
    text = _text(row, columns.text or "text", "text", report)
    pair = _text(row, columns.text_pair, "textPair", report) if columns.text_pair else None
    label = _label(row, columns.label or "label", report)
    if not text.strip() or (pair is not None and not pair.strip()):
        report.drop_unusable("with empty text", row.place)
    elif not label:
        report.drop_unusable("without label", row.place)
    elif not all(map(_is_unicode, (text, pair or "", label))):
        report.drop_unusable("with half a character", row.place)
    else:
        return LabelledText(text, pair, label, row.place)
    return None


def _text(row: Row, column: str, field: str, report: DataReport) -> str:
    """The text in a column; empty where there is none."""
    value = _value(row, column, field, report)
    if value is None or isinstance(value, str):
        return value or ""
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{report.source} {row.place}: the {field} {shown(value)} is of type {type(value).__name__}, not a string",
        f"is {column!r} the right column for data.columns.{field}?",
    )


def _label(row: Row, column: str, report: DataReport) -> str:
    """The label in a column by its name; empty where there is none."""
    value = _value(row, column, "label", report)
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or isinstance(value, int | str):
        return "" if value is None else str(value).strip()
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{report.source} {row.place}: the label {shown(value)} is of type {type(value).__name__}, "
        "not a string, integer or boolean",
        f"write labels as names; is {column!r} the right column for data.columns.label?",
    )


def _value(row: Row, column: str, field: str, report: DataReport) -> Any:
    """What a row has in a column. The first row has to have it: later ones of a jsonl file may leave it out."""
    if column not in row.values and report.num_read == 1:
        found = [str(name) for name in row.values]
        listed = ", ".join(map(shown, found[: 2 * _SHOWN])) + (", ..." if len(found) > 2 * _SHOWN else "")
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source} {row.place}: no column {column!r}; it has {listed or 'none'}",
            f"set data.columns.{field}; " + (nearest(column, found) or "it names the column to read"),
        )
    return row.values.get(column)


def _is_unicode(text: str) -> bool:
    r"""Whether a text can be written; JSON lets half of an emoji ("\ud83d") through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _labels(train: list[LabelledText], report: DataReport) -> tuple[str, ...]:
    labels = {row.label for row in train}
    if len(labels) < 2:
        what = f"the only label is {shown(*labels)}" if labels else "no training rows are left"
        raise TrainerError(
            ExitCode.DATA_INVALID, f"{report}; {what}", "classification needs rows of at least two labels"
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


def _check_labels_known(evaluation: list[LabelledText], labels: tuple[str, ...], report: DataReport) -> None:
    known = set(labels)
    unseen = Counter(row.label for row in evaluation if row.label not in known)
    if not unseen:
        return
    first = next(row for row in evaluation if row.label in unseen)
    counts = ", ".join(f"{shown(label)} ({count} rows)" for label, count in unseen.most_common(_SHOWN))
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{report.source} {first.place}: labels that the training data never shows: {counts}; it has "
        + ", ".join(map(shown, labels[:_SHOWN]))
        + (", ..." if len(labels) > _SHOWN else ""),
        nearest(first.label, list(labels)) or "put rows of every label into the training data",
    )
