"""Prints what others wrote as they wrote it: to rich, a message such as "[Errno 28]" would be a style."""

from __future__ import annotations

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


def _plain(text: str) -> str:
    """A text that cannot move the cursor or color the screen: a status holds what a pod wrote."""
    return "\n".join(map(printable, text.split("\n")))
