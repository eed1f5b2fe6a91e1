"""Rows to tagged words: checked, de-duplicated, split, with a tag map made from the training rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns
from finetune_trainer.data.columns import is_unicode, of_wrong_type, value_in
from finetune_trainer.data.formats import Row, shown
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Part, Rows
from finetune_trainer.data.rows import load as load_rows
from finetune_trainer.data.selection import normalise
from finetune_trainer.entity_metrics import OUTSIDE, EntityCounts, TagScheme, entity_type, without_prefix
from finetune_trainer.errors import TrainerError

_MAX_TAGS = 10_000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class TaggedWords:
    """One usable row."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    """One a word; None in a row without labels."""
    place: str
    label: str = ""

    def key(self) -> str:
        """The words as they count for duplicates."""
        return normalise(" ".join(self.words))


@dataclass(frozen=True, slots=True)
class TaggedRows:
    """The data of a token classification job."""

    rows: Rows[TaggedWords]
    tags: tuple[str, ...]
    """All tags, O first and the others sorted; the index is the class number."""

    def majority(self) -> dict[str, float]:
        """Accuracy and entity F1, on the evaluation rows, of always saying the tag most frequent in training."""
        counts = Counter(tag for row in self.rows.train.rows for tag in row.tags or ())
        most_frequent = max(counts.items(), key=lambda item: (item[1], item[0]))[0]
        entities = EntityCounts(TagScheme.of(self.tags))
        number_of = {tag: number for number, tag in enumerate(self.tags)}
        hits = words = 0
        for row in self.rows.evaluation.rows:
            actual = [number_of[tag] for tag in row.tags or ()]
            entities.add([number_of[most_frequent]] * len(actual), actual)
            hits += actual.count(number_of[most_frequent])
            words += len(actual)
        return {"accuracy": hits / words, "entityF1": entities.f1()}


def load(run: Run) -> TaggedRows:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    rows = load_rows(run, _check)
    if run.spec.data.evaluation is None:
        rows = _with_all_types_in_training(rows)
    trained = {tag for row in rows.train.rows for tag in row.tags or ()}
    others = [part for part in (rows.evaluation, rows.replay, rows.retention) if part is not None]
    # What is known of a type is known of all its tags: the I- of a name that training has in one word only.
    types = {entity_type(tag) for tag in trained}
    tags = trained | {
        tag for part in others for row in part.rows for tag in row.tags or () if entity_type(tag) in types
    }
    _check_tags(tags, rows.train.report)
    for part in others:
        _check_known(part, tags)
    return TaggedRows(rows, tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, tag))))


def _check(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> TaggedWords | None:
    """The row as tagged words, or None when it is dropped."""
    words = _strings(row, columns.tokens or "tokens", "tokens", report)
    tags = _strings(row, columns.tags or "tags", "tags", report) if is_labelled else None
    if not words or not any(word and word.strip() for word in words) or None in words:
        report.drop_unusable("without words" if None not in words else "with a word that is null", row.place)
    elif is_labelled and (not tags or not all(tag and tag.strip() for tag in tags)):
        report.drop_unusable("without tags" if not tags else "with a word without a tag", row.place)
    elif tags is not None and len(tags) != len(words):
        report.drop_unusable("with another number of tags than of words", row.place)
    elif not all(is_unicode(text or "") for text in (*words, *(tags or ()))):
        report.drop_unusable("with half a character", row.place)
    else:
        named = tuple((tag or "").strip() for tag in tags) if tags is not None else None
        return TaggedWords(tuple(word or "" for word in words), named, row.place)
    return None


def _strings(row: Row, column: str, field: str, report: DataReport) -> list[str | None]:
    """The list in a column; empty where there is none. An item may be null, or else is a string."""
    value = value_in(row, column, field, report)
    if value is None:
        return []
    if not isinstance(value, list):
        raise of_wrong_type(row, field, value, "a list of strings", column, report)
    for item in value:
        if item is not None and not isinstance(item, str):
            raise _of_wrong_item(row, field, item, column, report)
    return value


def _of_wrong_item(row: Row, field: str, item: Any, column: str, report: DataReport) -> TrainerError:
    hint = f"is {column!r} the right column for data.columns.{field}?"
    return TrainerError(
        ExitCode.DATA_INVALID,
        f"{report.source} {row.place}: {shown(item)} among the {field} is of type {type(item).__name__}, not a string",
        f"write tags by name, such as B-PER; {hint}" if field == "tags" else hint,
    )


def _with_all_types_in_training(rows: Rows[TaggedWords]) -> Rows[TaggedWords]:
    """Give held-out rows back that alone have an entity type: it must be learnt to be judged."""
    known = {entity_type(tag) for row in rows.train.rows for tag in row.tags or ()}
    held: list[TaggedWords] = []
    given_back: list[TaggedWords] = []
    for row in rows.evaluation.rows:
        new = {entity_type(tag) for tag in row.tags or ()} - known
        (given_back if new else held).append(row)
        known |= new
    report = rows.train.report
    if given_back and not held:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source}: every row that would be held out for evaluation has tags that no other row has",
            "give data.evaluation, or more rows of every tag",
        )
    report.num_held_out -= len(given_back)
    train = [*rows.train.rows, *given_back]
    return replace(rows, train=Part(train, report), evaluation=Part(held, report))


def _check_tags(tags: set[str], report: DataReport) -> None:
    if len(tags) < 2:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report}; the only tag is {shown(*tags)}",
            "token classification needs words of at least two tags",
        )
    if len(tags) > _MAX_TAGS:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source}: {len(tags)} different tags",
            f"at most {_MAX_TAGS} can be learnt; is data.columns.tags the right column?",
        )
    if plain := without_prefix(tags):
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source}: some tags begin with B- and I-, but {', '.join(map(shown, plain[:_SHOWN]))} "
            f"{'does' if len(plain) == 1 else 'do'} not",
            "write all tags but O with a prefix, or none",
        )


def _check_known(part: Part[TaggedWords], tags: set[str]) -> None:
    unseen = Counter(tag for row in part.rows for tag in row.tags or () if tag not in tags)
    if not unseen:
        return
    first = next(row for row in part.rows if not tags.issuperset(row.tags or ()))
    first_tag = next(tag for tag in first.tags or () if tag in unseen)
    counts = ", ".join(f"{shown(tag)} ({count} words)" for tag, count in unseen.most_common(_SHOWN))
    known = sorted(tags)
    raise TrainerError(
        ExitCode.DATA_INVALID,
        f"{part.report.source} {first.place}: tags that the training data never shows: {counts}; it has "
        + ", ".join(map(shown, known[:_SHOWN]))
        + (", ..." if len(known) > _SHOWN else ""),
        nearest(first_tag, known) or "put rows of every tag into the training data",
    )
