"""Chooses among usable rows: repeats and leaks go, a part is held out for evaluation."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from finetune_trainer.data.report import DataReport


class UsableRow(Protocol):
    """A row that can be compared and, by its label, be stratified."""

    @property
    def label(self) -> str:
        """The class; the same for all where the task has none."""

    @property
    def place(self) -> str:
        """Where the row is, for people."""

    def key(self) -> str:
        """The text as it counts for duplicates."""


RowT = TypeVar("RowT", bound=UsableRow)


def key_of(row: UsableRow) -> str:
    """The text as it counts for duplicates."""
    return row.key()


_QUOTES = "\"'`\u00ab\u00bb\u2039\u203a\u201e\u201a"
_BEFORE = _QUOTES + "\u00a1\u00bf"
_AFTER = _QUOTES + ".,;:!?\u3002\u3001\u061f\u060c\u0964"
"""What ends a sentence or a part of one, in Chinese, Arabic and Hindi too."""
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010](?=[^\W\d_])")
_AS_ASCII = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")


def normalise(text: str) -> str:
    """A text to be classified: without regard to case, spaces, hyphens, and quotes and sentence marks around words.

    What is within a word counts (10.5), and any other character does: "a * b" is not "a / b", ":)" is not ":(".
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_AS_ASCII)
    words = _HYPHEN.sub(" ", folded).split()
    return " ".join(filter(None, map(_bare, words))) or " ".join(words)


def _bare(word: str) -> str:
    return word.lstrip(_BEFORE).rstrip(_AFTER)


def but_for_spaces(text: str) -> str:
    """A text that is learnt to the character: without regard to spaces, and to how Unicode composes characters."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def hold_out(rows: Sequence[RowT], fraction: float, seed: int) -> tuple[list[RowT], list[RowT]]:
    """Split off a random fraction, but every label stays in the first part, and equal texts stay together.

    Returns (train, held_out) in the order of the rows; held_out is empty only when no text can be spared.
    """
    groups: dict[str, list[RowT]] = {}
    for row in rows:
        groups.setdefault(row.key(), []).append(row)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(len(rows) * fraction))
    remaining = Counter(row.label for row in rows)
    held: set[int] = set()
    for group in order:
        if len(held) + len(group) <= wanted and _can_spare(remaining, group):
            held.update(id(row) for row in group)
            remaining.subtract(row.label for row in group)
    if not held:  # every text that can be spared has more rows than wanted
        spare = [group for group in order if _can_spare(remaining, group)]
        held.update(id(row) for row in min(spare, key=len, default=[]))
    return [row for row in rows if id(row) not in held], [row for row in rows if id(row) in held]


def _can_spare(remaining: Counter[str], group: Sequence[UsableRow]) -> bool:
    return all(remaining[label] > count for label, count in Counter(row.label for row in group).items())


def without_repeats(rows: Iterable[RowT], report: DataReport) -> list[RowT]:
    """The first row of every text."""
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


def without_those_in(
    rows: Iterable[RowT],
    others: Iterable[RowT],
    reason: str,
    report: DataReport,
    text_of: Callable[[RowT], str] = key_of,
) -> list[RowT]:
    """The rows whose text is not among the others; `reason` says where it is."""
    held = {text_of(row) for row in others}
    kept = []
    for row in rows:
        if text_of(row) in held:
            report.drop_duplicate(reason, row.place)
        else:
            kept.append(row)
    return kept
