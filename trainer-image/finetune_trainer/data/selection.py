"""Chooses among usable rows: repeats and leaks go, a part is held out for evaluation."""

from __future__ import annotations

import random
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


class _WithoutPunctuation(dict[int, int]):
    """Translates characters for `str.translate`: punctuation to a space, symbols (emoji, +, <) as they are."""

    def __missing__(self, code: int) -> int:
        self[code] = ord(" ") if unicodedata.category(chr(code)).startswith("P") else code
        return self[code]


_WITHOUT_PUNCTUATION = _WithoutPunctuation()


def normalise(text: str) -> str:
    """Without regard to case, punctuation and spaces; a text of nothing but punctuation keeps it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_WITHOUT_PUNCTUATION).split()) or " ".join(folded.split())


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
