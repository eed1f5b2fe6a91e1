"""Turn the rating and question files of the example data into clean, unique rows with a fixed split.

All but write_jsonl are pure functions.
"""

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar


class AssetError(Exception):
    """A failure to report in one sentence."""


class Row(NamedTuple):
    text: str
    label: str


class HasText(Protocol):
    @property
    def text(self) -> str:
        """What tells it from others."""


HasTextT = TypeVar("HasTextT", bound=HasText)


def normalise(text: str) -> str:
    """The text as compared for duplicates: lower case, no punctuation or symbols, single spaces."""
    kept = (char for char in text.lower() if unicodedata.category(char)[0] not in "PS")
    return " ".join("".join(kept).split())


def deduplicate(rows: Iterable[HasTextT]) -> list[HasTextT]:
    """The first of all rows that normalise to the same text."""
    first: dict[str, HasTextT] = {}
    for row in rows:
        first.setdefault(normalise(row.text), row)
    return list(first.values())


def split(rows: Iterable[HasTextT], evaluation: int, train: int | None) -> tuple[list[HasTextT], list[HasTextT]]:
    """The train rows (all that are left if None) and evaluation rows, in the order of their texts' hashes."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(normalise(row.text).encode()).hexdigest())
    wanted = evaluation + (1 if train is None else train)
    if len(ordered) < wanted:
        raise AssetError(f"the split needs at least {wanted} rows, but only {len(ordered)} are left")
    end = len(ordered) if train is None else evaluation + train
    return ordered[evaluation:end], ordered[:evaluation]


def label_of_score(score: float) -> str | None:
    """The class of a mean rating, None where the raters saw no clear side."""
    if score >= 0.5:
        return "positive"
    return "negative" if score <= -0.5 else None


def clean(text: str) -> str:
    return html.unescape(text).strip()


def rows_of_ratings(content: str) -> list[Row]:
    """Rows of a VADER file: a header, then id, score and text between tabs."""
    rows = []
    for number, line in enumerate(content.split("\n")[1:], start=2):
        if not line.strip():
            continue
        try:
            _, score, text = line.split("\t")
            label = label_of_score(float(score))
        except ValueError:
            raise AssetError(f"line {number} of the ratings is not id, score and text") from None
        if label is not None:
            rows.append(Row(clean(text), label))
    return rows


def rows_of_questions(content: str) -> list[Row]:
    """Rows of the TREC file: COARSE:fine, a space, the question."""
    rows = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([A-Z]+):[a-z]+ (.+)", line.strip())
        if match is None:
            raise AssetError(f"line {number} of the questions is not COARSE:fine and a question")
        rows.append(Row(clean(match[2]), match[1]))
    return rows


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], remark: str = "") -> None:
    """Write a row a line, and say how many."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"  {path.parent.name}/{path.name}: {len(lines)} rows{remark}")
