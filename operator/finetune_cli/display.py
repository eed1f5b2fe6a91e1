"""Shows running jobs: progress bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from finetune_api.problems import printable
from finetune_api.v1alpha1.status import Progress
from finetune_cli.text import say

_PLAIN_INTERVAL_SECONDS = 5.0
_WIDE = 100


class Display(Protocol):
    """What a running job is shown on."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(self, *exception: object) -> None:
        """Stop showing."""

    def note(self, text: str) -> None:
        """Show a sentence."""

    def state(self, text: str, *, ended: bool = False) -> None:
        """Show what state the job is in; of one that has ended, time and bar stand still."""

    def progress(self, progress: Progress) -> None:
        """Show how far training is."""

    def evaluation(self, event: dict[str, Any]) -> None:
        """Show an evaluation."""


def make_display(name: str, metric: str, console: Console) -> Display:
    """A bar (with the metric that decides) if the console is a terminal, else lines."""
    return Board(console).display(name, metric)


class Board:
    """The displays of several jobs on one console: bars under each other, or lines with the job's name."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _make_bar(console) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def display(self, name: str, metric: str) -> Display:
        """The display of one more job."""
        return _LineDisplay(name, self._console) if self._bar is None else _BarDisplay(name, metric, self._bar)


def _make_bar(console: Console) -> Bar:
    return Bar(
        _Words("description", style="bold"),
        _Words("state"),
        BarColumn(),
        TextColumn("{task.fields[steps]}", justify="right"),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("{task.fields[evaluation]}"),
        TextColumn("ETA {task.fields[eta]}"),
        *([TimeElapsedColumn()] if console.width >= _WIDE else []),
        console=console,
    )


class _Words(ProgressColumn):
    """A job's name, or a cluster's words. Where the screen is narrow they are cut, and the figures stay whole."""

    def __init__(self, field: str, style: str = "") -> None:
        super().__init__()
        self._field = field
        self._style = style

    def render(self, task: Task) -> Text:
        words = task.description if self._field == "description" else task.fields[self._field]
        return Text(words, style=self._style, no_wrap=True, overflow="ellipsis")


class _BarDisplay:
    def __init__(self, name: str, metric: str, bar: Bar) -> None:
        self._metric = metric
        self._bar = bar
        self._task = bar.add_task(name, total=None, steps="-", loss="-", eta="-", evaluation="", state="")
        self._is_measured = False

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        say(self._bar.console, text)

    def state(self, text: str, *, ended: bool = False) -> None:
        self._bar.update(self._task, state=printable(text))
        if ended:
            if not self._is_measured:
                self._bar.update(self._task, total=1)  # or the bar moves to and fro
            self._bar.update(self._task, eta="-")
            self._bar.stop_task(self._task)

    def progress(self, progress: Progress) -> None:
        self._is_measured = progress.total_steps > 0
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.total_steps or None,
            steps=f"{progress.step}/{progress.total_steps}" if self._is_measured else "-",
            loss=number(progress.loss),
            eta=duration(progress.eta_seconds),
        )

    def evaluation(self, event: dict[str, Any]) -> None:
        value = number(event["metrics"].get(self._metric))
        self._bar.update(self._task, evaluation=f"{self._metric} {value}")


class _LineDisplay:
    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._shown_at = 0.0
        self._state = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def note(self, text: str) -> None:
        say(self._console, f"{self._name}: {text}")

    def state(self, text: str, *, ended: bool = False) -> None:
        if text != self._state:
            self.note(text)
        self._state = text

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown_at < _PLAIN_INTERVAL_SECONDS or progress.loss is None:
            return
        self._shown_at = now
        self.note(
            f"step {progress.step}/{progress.total_steps} loss {number(progress.loss)} "
            f"ETA {duration(progress.eta_seconds)}"
        )

    def evaluation(self, event: dict[str, Any]) -> None:
        self.note(f"evaluation {event['when']} (step {event['step']}): {_metrics(event)}")


def _metrics(event: dict[str, Any]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in event["metrics"].items())


def number(value: float | None) -> str:
    """A loss or a metric."""
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: int | None) -> str:
    """Minutes and seconds, and hours where there are any."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
