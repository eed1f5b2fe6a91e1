"""Metrics of tagged words: entities found whole, words tagged right. Kept as counts; words of a row may come in pieces.

A shape suffix U is a batch's words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from finetune_trainer.batching import NO_UNIT, Batch, Example

OUTSIDE = "O"
_PREFIXED = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
# The letters of BILOU by their names in BIOES.
_SAME = {"L": "E", "U": "S"}

Span = tuple[str, int, int]
"""An entity: its type, its first and its last word."""


@dataclass(frozen=True, slots=True)
class TagScheme:
    """How tags spell entities: with prefixes (IOB1, IOB2, BIOES, BILOU), or plainly by their type alone."""

    parts: tuple[tuple[str, str], ...]
    """Each tag's prefix and type, by its number; those of O are O and empty."""

    @classmethod
    def of(cls, tags: Sequence[str], used: Sequence[str] | None = None) -> TagScheme:
        """The scheme of a set of tags: prefixes count only where every tag but O has one, of those that are used."""
        inside = [tag for tag in (tags if used is None else used) if tag != OUTSIDE]
        has_prefixes = all(_PREFIXED.fullmatch(tag) for tag in inside)
        return cls(tuple(_parts(tag, has_prefixes) for tag in tags))

    def spans(self, tags: Sequence[int]) -> list[Span]:
        """The entities in a row of tag numbers, as conlleval (Tjong Kim Sang & Buchholz 2000) and seqeval find them.

        Prefixes need not be in order: an I- after O, or after another type, starts an entity too. Words in a row with
        one plain tag are one entity.
        """
        found: list[Span] = []
        start, before, type_before = 0, OUTSIDE, ""
        for place, number in enumerate([*tags, -1]):
            prefix, kind = self.parts[number] if number >= 0 else (OUTSIDE, "")
            is_new = prefix in "BS" or before in "ESO" or kind != type_before
            if before != OUTSIDE and (is_new or prefix == OUTSIDE):
                found.append((type_before, start, place - 1))
            if prefix != OUTSIDE and is_new:
                start = place
            before, type_before = prefix, kind
        return found


def entity_type(tag: str) -> str:
    """What a tag with a prefix says beside it; any other tag as it is."""
    match = _PREFIXED.fullmatch(tag)
    return match[2] if match else tag


def without_prefix(tags: Iterable[str]) -> list[str]:
    """The tags without a prefix, sorted, where others show by a B- and an I- of one type that prefixes are meant."""
    inside = [tag for tag in tags if tag != OUTSIDE]
    begun = {tag[2:] for tag in inside if tag.startswith("B-")}
    if not any(tag.startswith("I-") and tag[2:] in begun for tag in inside):
        return []
    return sorted(tag for tag in inside if not _PREFIXED.fullmatch(tag))


def _parts(tag: str, has_prefixes: bool) -> tuple[str, str]:
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = _PREFIXED.fullmatch(tag) if has_prefixes else None
    return (_SAME.get(match[1], match[1]), match[2]) if match else ("I", tag)


@dataclass(slots=True)
class EntityCounts:
    """What entity F1 is made of, over whole rows."""

    scheme: TagScheme
    hits: int = 0
    predicted: int = 0
    actual: int = 0

    def add(self, predicted: Sequence[int], actual: Sequence[int]) -> None:
        """Count a row: an entity is a hit when its type and both its ends are right."""
        found, wanted = set(self.scheme.spans(predicted)), set(self.scheme.spans(actual))
        self.hits += len(found & wanted)
        self.predicted += len(found)
        self.actual += len(wanted)

    def f1(self) -> float:
        """Micro-averaged over all entities; 0 where there are none."""
        return 2 * self.hits / max(1, self.predicted + self.actual)


@dataclass(slots=True)
class _Pieces:
    """The windows of one row that have come so far: their predicted and actual tags by the window's number."""

    predicted: dict[int, list[int]] = field(default_factory=dict)
    actual: dict[int, list[int]] = field(default_factory=dict)

    def joined(self) -> tuple[list[int], list[int]]:
        """The row's tags in the order of its words."""
        order = sorted(self.predicted)
        return [tag for n in order for tag in self.predicted[n]], [tag for n in order for tag in self.actual[n]]


class EntityMetrics:
    """Entity F1, accuracy over words and mean loss over words, independent of how rows are batched or cut."""

    def __init__(self, scheme: TagScheme, num_windows: dict[int, int]) -> None:
        """`num_windows` says of each row that is cut how many examples it has; all others have one."""
        self._counts = EntityCounts(scheme)
        self._num_windows = num_windows
        self._unfinished: dict[int, _Pieces] = {}
        self._words = 0
        self._right = 0
        self._loss_sum = 0.0

    def update(self, examples: Sequence[Example], batch: Batch, logits_UC: Tensor, loss_sum: float) -> None:
        """Add a batch; its units are words."""
        predicted_U, targets_U = logits_UC.argmax(-1).tolist(), batch.targets.tolist()
        start = 0
        for example in examples:
            end = start + sum(tag != NO_UNIT for tag in cast("list[int]", example.target))
            self._add(example, predicted_U[start:end], targets_U[start:end])
            start = end
        self._loss_sum += loss_sum

    def compute(self) -> dict[str, float]:
        """The metrics so far, over the rows that have come whole."""
        words = max(1, self._words)
        return {
            "entityF1": self._counts.f1(),
            "accuracy": self._right / words,
            "loss": self._loss_sum / words,
        }

    def _add(self, example: Example, predicted: list[int], actual: list[int]) -> None:
        self._words += len(actual)
        self._right += sum(one == other for one, other in zip(predicted, actual, strict=True))
        num_windows = self._num_windows.get(example.row, 1)
        if num_windows == 1:
            self._counts.add(predicted, actual)
            return
        # An entity may lie across the cut, so a row is scored when all of it is there.
        pieces = self._unfinished.setdefault(example.row, _Pieces())
        pieces.predicted[example.window], pieces.actual[example.window] = predicted, actual
        if len(pieces.predicted) == num_windows:
            self._counts.add(*self._unfinished.pop(example.row).joined())
