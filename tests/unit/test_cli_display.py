"""What a job or a cluster says is shown as it is: neither markup nor a command to the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from finetune_cli.display import make_display

SAID = "Failed: [/red] row 3 \x1b]0;title\x07 and \x1b[2J"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_neither_brackets_nor_escapes_are_obeyed(is_terminal: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=is_terminal, width=200)
    with make_display("job", "accuracy", console) as display:
        display.state(SAID)
        display.note(SAID)
    shown = written.getvalue()
    assert shown.count("Failed: [/red] row 3 \\x1b]0;title\\x07 and \\x1b[2J") >= 2
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
