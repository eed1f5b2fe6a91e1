"""Rows to labelled texts: checked, de-duplicated, split, with a label map made from the training rows."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns, DataSource
from finetune_trainer.data.formats import Row
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.sources import EVALUATION_SPLITS, TRAIN_SPLITS, read_rows
from finetune_trainer.errors import TrainerError

DEFAULT_SPLIT_FRACTION = 0.1
_MAX_LABELS = 10_000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One usable row."""

    text: str
    pair: str | None
    label: str
    place: str

    def key(self) -> str:
        """The text as it counts for duplicates: lower-case, without punctuation, single spaces."""
        return normalise(self.text) + ("\x00" + normalise(self.pair) if self.pair is not None else "")


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """The data of a text classification job."""

    train: list[LabelledText]
    evaluation: list[LabelledText]
    labels: tuple[str, ...]
    """All labels, sorted; the index is the class number."""
    reports: tuple[DataReport, ...]

    def majority_fraction(self) -> float:
        """Accuracy, on the evaluation rows, of always saying the label most frequent in the training rows."""
        most_frequent = max(Counter(row.label for row in self.train).items(), key=lambda item: (item[1], item[0]))[0]
        return sum(row.label == most_frequent for row in self.evaluation) / len(self.evaluation)


def load(run: Run) -> LabelledTexts:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    data, seed = run.spec.data, run.spec.training.seed
    train, train_report = _read_source(data.train, run, TRAIN_SPLITS)
    reports = [train_report]
    if data.deduplicate:
        train = _without_repeats(train, train_report)
    if data.evaluation is not None:
        evaluation, evaluation_report = _read_source(data.evaluation, run, EVALUATION_SPLITS)
        reports.append(evaluation_report)
        if data.deduplicate:
            train = _without_leaks(train, evaluation, train_report)
    else:
        train, evaluation = hold_out(train, data.split_fraction or DEFAULT_SPLIT_FRACTION, seed)
    for report, rows in zip(reports, (train, evaluation), strict=False):
        report.num_kept = len(rows)
    if data.evaluation is None:
        train_report.num_kept += len(evaluation)
    labels = _labels(train, evaluation, data.train.uri)
    return LabelledTexts(train, evaluation, labels, tuple(reports))


def normalise(text: str) -> str:
    """Lower-case, without punctuation, with single spaces."""
    return " ".join(re.sub(r"[^\w\s]|_", " ", unicodedata.normalize("NFKC", text).lower()).split())


def hold_out(rows: list[LabelledText], fraction: float, seed: int) -> tuple[list[LabelledText], list[LabelledText]]:
    """
    Split off a random fraction (at least one row), keeping equal texts together and every label in the first part.

    Returns (train, held_out); both keep the order of the rows.
    """
    groups: dict[str, list[LabelledText]] = {}
    for row in rows:
        groups.setdefault(row.key(), []).append(row)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(len(rows) * fraction))
    remaining = Counter(row.label for row in rows)
    held: set[int] = set()
    for group in order:
        needed = Counter(row.label for row in group)
        if len(held) + len(group) <= wanted and all(remaining[label] > count for label, count in needed.items()):
            held.update(id(row) for row in group)
            remaining -= needed
    if not held:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{len(rows)} usable rows are too few to hold some out for evaluation",
            "give data.evaluation, or more rows for every label",
        )
    return [row for row in rows if id(row) not in held], [row for row in rows if id(row) in held]


def _read_source(source: DataSource, run: Run, splits: tuple[str, ...]) -> tuple[list[LabelledText], DataReport]:
    report = DataReport(source.uri)
    texts = [text for row in read_rows(source, run, splits) if (text := _check(row, run.spec.data.columns, report))]
    limit = run.spec.data.max_dropped_fraction
    if report.num_read == 0:
        raise TrainerError(ExitCode.DATA_INVALID, f"{source.uri}: no rows", "the file is empty; check the uri")
    if not texts or report.unusable_fraction > limit:
        report.num_kept = len(texts)
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report}; {'all rows are' if not texts else f'{report.unusable_fraction:.1%} of the rows are'} unusable",
            f"mend the rows, or raise data.maxDroppedFraction (now {limit:g})" if texts else "mend the rows",
        )
    return texts, report


def _check(row: Row, columns: Columns, report: DataReport) -> LabelledText | None:
    """The row as a labelled text, or None when it is dropped. A column that is not there is an error."""
    report.num_read += 1
    text = _column(row, columns.text or "text", "text", report.source)
    label = _column(row, columns.label or "label", "label", report.source)
    pair = _column(row, columns.text_pair, "textPair", report.source) if columns.text_pair else None
    for name, value in (("text", text), ("textPair", pair)):
        if value is not None and not isinstance(value, str):
            raise TrainerError(
                ExitCode.DATA_INVALID,
                f"{report.source}: {row.place}: the {name} is a {type(value).__name__}, not a string",
                f"is data.columns.{name} the right column?",
            )
    if not text or not text.strip() or (columns.text_pair and not (pair and pair.strip())):
        report.drop_unusable("with empty text", row.place)
        return None
    if label is None or label == "":
        report.drop_unusable("without label", row.place)
        return None
    return LabelledText(text, pair, _label_name(label, row.place, report.source), row.place)


def _column(row: Row, column: str, field: str, source: str) -> Any:
    if column not in row.values:
        found = [str(name) for name in row.values]
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{source}: {row.place} has no column {column!r}; it has {', '.join(found) or 'none'}",
            f"set data.columns.{field}; " + (nearest(column, found) or "it names the column to read"),
        )
    return row.values[column]


def _label_name(label: Any, place: str, source: str) -> str:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int | str):
        return str(label).strip()
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{source}: {place}: the label is a {type(label).__name__}, not a string, integer or boolean",
        "for classification write labels as names",
    )


def _without_repeats(rows: list[LabelledText], report: DataReport) -> list[LabelledText]:
    label_of: dict[str, str] = {}
    kept = []
    for row in rows:
        key = row.key()
        if key not in label_of:
            label_of[key] = row.label
            kept.append(row)
        elif label_of[key] == row.label:
            report.drop_duplicate("repeated", row.place)
        else:
            report.drop_duplicate("repeated with another label", row.place)
    return kept


def _without_leaks(
    rows: list[LabelledText], evaluation: Iterable[LabelledText], report: DataReport
) -> list[LabelledText]:
    held = {row.key() for row in evaluation}
    kept = []
    for row in rows:
        if row.key() in held:
            report.drop_duplicate("also in the evaluation data", row.place)
        else:
            kept.append(row)
    return kept


def _labels(train: list[LabelledText], evaluation: list[LabelledText], source: str) -> tuple[str, ...]:
    labels = sorted({row.label for row in train})
    if len(labels) < 2:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{source}: {f'the only label is {labels[0]!r}' if labels else 'no training rows are left'}",
            "classification needs rows of at least two labels",
        )
    if len(labels) > _MAX_LABELS:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{source}: {len(labels)} different labels",
            "is data.columns.label the right column?",
        )
    known = set(labels)
    unseen = Counter(row.label for row in evaluation if row.label not in known)
    if unseen:
        shown = ", ".join(f"{label!r} ({count} rows)" for label, count in unseen.most_common(_SHOWN))
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"labels in the evaluation data that training never shows: {shown}; training has "
            + ", ".join(map(repr, labels[:_SHOWN]))
            + (", ..." if len(labels) > _SHOWN else ""),
            "use one spelling for each label, and put rows of every label into the training data",
        )
    return tuple(labels)
