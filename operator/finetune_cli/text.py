"""Prints what others wrote as they wrote it, as long as anybody can read it.

To rich, a message such as "[Errno 28]" would be a style.
"""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.problems import printable

_PLAIN_WIDTH = 160  # without a terminal the width is unknown, and a name or a path cut in two could not be copied


def make_console(stream: IO[str] | None = None) -> Console:
    """What is printed on; sys.stdout if no stream is given."""
    console = Console(file=stream)
    return console if console.is_terminal else Console(file=stream, width=_PLAIN_WIDTH)


def say(console: Console, text: str) -> None:
    """A sentence; long ones are not cut, so that they can be copied."""
    console.print(plain(text), markup=False, highlight=False, soft_wrap=True)


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """A row of a table."""
    table.add_row(*(Text(plain(cell)) for cell in cells), style=style)


def plain(text: str) -> str:
    """A text that cannot move the cursor or color the screen: a status holds what a pod wrote."""
    return "\n".join(map(printable, text.split("\n")))
