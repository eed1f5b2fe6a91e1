"""Counts what became of the rows: kept, dropped and why, truncated, mended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_EXAMPLES = 3


@dataclass(slots=True)
class DataReport:
    """What became of the rows of one source."""

    source: str
    is_training: bool = True
    """Whether they are the training rows, by which data.columns is set."""
    num_read: int = 0
    num_kept: int = 0
    num_held_out: int = 0
    """Kept rows that are evaluated on, because no evaluation data was given."""
    num_truncated: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be learnt from, by reason."""
    duplicate: Counter[str] = field(default_factory=Counter)
    """Usable rows that are left out because they repeat others, by reason."""
    noted: Counter[str] = field(default_factory=Counter)
    """Kept rows with which something was done, by what."""
    places: dict[str, list[str]] = field(default_factory=dict)
    """The first few places for each reason."""

    def drop_unusable(self, reason: str, place: str) -> None:
        """Count a row that cannot be learnt from."""
        self._note(self.unusable, reason, place)

    def drop_duplicate(self, reason: str, place: str) -> None:
        """Count a row that repeats another."""
        self._note(self.duplicate, reason, place)

    def note(self, what: str, place: str) -> None:
        """Count a row that is kept, but not as it stood."""
        self._note(self.noted, what, place)

    def _note(self, counter: Counter[str], reason: str, place: str) -> None:
        counter[reason] += 1
        examples = self.places.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(place)

    @property
    def unusable_fraction(self) -> float:
        """Share of the rows read that are unusable."""
        return self.unusable.total() / self.num_read if self.num_read else 0.0

    def __str__(self) -> str:
        """One line for people: "a.jsonl: 98 rows kept of 100 read; dropped 2: 2 repeated (line 7, line 9)"."""
        text = f"{self.source}: {self.num_kept} rows kept of {self.num_read} read"
        if self.num_held_out:
            text += f", {self.num_held_out} of them held out for evaluation"
        if dropped := self.unusable + self.duplicate:
            text += f"; dropped {dropped.total()}: {self._listed(dropped)}"
        if self.num_truncated:
            text += f"; {self.num_truncated} truncated"
        if self.noted:
            text += f"; {self._listed(self.noted)}"
        return text

    def _listed(self, counter: Counter[str]) -> str:
        return ", ".join(
            f"{count} {reason} ({', '.join(self.places[reason])}{', ...' if count > _EXAMPLES else ''})"
            for reason, count in counter.items()
        )
