"""Reads CoNLL files: a word a line, its tag in the last column, a blank line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

Sentence = tuple[int, list[str], list[str] | None]
"""The line it starts on, its words and their tags; none in a file of words alone."""

_DOCUMENT = "-DOCSTART-"
# Other blanks, such as the no-break space of "10 000", are part of a word.
_BLANKS = " \t"
# "# sent_id = 3" of CoNLL-U and "# id 5239 domain=train" of MultiCoNER; a line "# O" is a word.
_COMMENT = re.compile(r"#\s*(id\s|[^\s=]+\s*=)")


def read_sentences(path: Path) -> Iterator[Sentence]:
    """The sentences of a file. Raises TrainerError (DATA_INVALID) naming the file and the line."""
    start, words, tags, num_columns = 0, list[str](), list[str](), 0
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            columns = _columns(line)
            if not columns or columns[0] == _DOCUMENT:
                if words:
                    yield start, words, tags if num_columns > 1 else None
                words, tags = [], []
                continue
            if not words and _COMMENT.match(line):
                continue
            start = start if words else number
            num_columns = num_columns or len(columns)
            _check(path, number, columns, num_columns)
            words.append(columns[0])
            tags.append(columns[-1])
    if words:
        yield start, words, tags if num_columns > 1 else None


def _columns(line: str) -> list[str]:
    """Between tabs where there are any, so that a word may hold a space; else between spaces. None of a blank line."""
    line = line.rstrip("\r\n")
    if not line.strip(_BLANKS):
        return []
    if "\t" in line:
        return [column.strip(_BLANKS) for column in line.split("\t")]
    return [column for column in line.split(" ") if column]


def _check(path: Path, number: int, columns: list[str], num_columns: int) -> None:
    if len(columns) != num_columns:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{path} line {number}: {len(columns)} columns, but the first word's line has {num_columns}",
            "write a word a line, its tag in the last column, and a blank line between sentences",
        )
    if not columns[0] or not columns[-1]:
        what = "word" if not columns[0] else "tag"
        raise TrainerError(
            ExitCode.DATA_INVALID, f"{path} line {number}: no {what}", "write O where there is no entity"
        )
