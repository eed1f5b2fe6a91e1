"""Shows a running job: a progress bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from finetune_api.v1alpha1.status import Progress

_PLAIN_INTERVAL_SECONDS = 5.0


class Display(Protocol):
    """What a running job is shown on."""

    def __enter__(self) -> Self:
        """Start showing."""

    def __exit__(self, *exception: object) -> None:
        """Stop showing."""

    def note(self, text: str) -> None:
        """Show a sentence."""

    def progress(self, progress: Progress) -> None:
        """Show how far training is."""

    def evaluation(self, event: dict[str, Any]) -> None:
        """Show an evaluation."""


def make_display(name: str, metric: str, console: Console) -> Display:
    """A bar (with the metric that decides) if the console is a terminal, else lines."""
    return _BarDisplay(name, metric, console) if console.is_terminal else _LineDisplay(name, console)


class _BarDisplay:
    def __init__(self, name: str, metric: str, console: Console) -> None:
        self._metric = metric
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[evaluation]}"),
            TextColumn("ETA {task.fields[eta]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task(name, total=None, loss="-", eta="-", evaluation="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.total_steps or None,
            loss=_number(progress.loss),
            eta=_duration(progress.eta_seconds),
        )

    def evaluation(self, event: dict[str, Any]) -> None:
        value = _number(event["metrics"].get(self._metric))
        self._bar.update(self._task, evaluation=f"{self._metric} {value}")


class _LineDisplay:
    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def note(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", markup=False, highlight=False, soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._shown_at < _PLAIN_INTERVAL_SECONDS or progress.loss is None:
            return
        self._shown_at = now
        self.note(
            f"step {progress.step}/{progress.total_steps} loss {_number(progress.loss)} "
            f"ETA {_duration(progress.eta_seconds)}"
        )

    def evaluation(self, event: dict[str, Any]) -> None:
        self.note(f"evaluation {event['when']} (step {event['step']}): {_metrics(event)}")


def _metrics(event: dict[str, Any]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in event["metrics"].items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _duration(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
