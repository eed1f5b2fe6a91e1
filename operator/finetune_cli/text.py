"""Prints what others wrote as they wrote it, as long as anybody can read it.

To rich, a message such as "[Errno 28]" would be a style.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.problems import printable


def say(console: Console, text: str) -> None:
    """A sentence; long ones are not cut, so that they can be copied."""
    console.print(_plain(text), markup=False, highlight=False, soft_wrap=True)


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """A row of a table."""
    table.add_row(*(Text(_plain(cell)) for cell in cells), style=style)


def lasting(stream: IO[str] | None) -> IO[str]:
    """A stream that may break off, as a closed terminal or pipe does, or was never there; the rest is dropped."""
    return cast("IO[str]", _Lasting(stream or Path(os.devnull).open("w", encoding="utf-8")))


class _Lasting:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Let the rest go nowhere, also what Python has kept to write it at the end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def _plain(text: str) -> str:
    """A text that cannot move the cursor or color the screen: a status holds what a pod wrote."""
    return "\n".join(map(printable, text.split("\n")))
