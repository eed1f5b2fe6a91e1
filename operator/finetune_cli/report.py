"""The table at the end: what tuning did, a column a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from finetune_api.v1alpha1.status import Result
from finetune_cli.display import number
from finetune_cli.local import Placed
from finetune_cli.text import add_row

_ROWS: tuple[tuple[str, Callable[[Placed, Result], str]], ...] = (
    ("metric", lambda placed, result: result.metric),
    ("without a model", lambda placed, result: number(result.baseline)),
    ("before", lambda placed, result: number(result.before.get(result.metric))),
    ("after", lambda placed, result: number(result.after.get(result.metric))),
    ("trained parameters", lambda placed, result: f"{result.trainable_parameters:,}"),
    ("share of all", lambda placed, result: f"{result.trainable_parameters / result.total_parameters:.2%}"),
    ("steps", lambda placed, result: f"{result.steps}{' (stopped early)' if result.stopped_early else ''}"),
    ("time", lambda placed, result: f"{result.duration_seconds:.0f} s"),
    ("model", lambda placed, result: _from_here(placed.output) if placed.output else result.uri),
)


def print_results(console: Console, results: Sequence[tuple[Placed, str, Result]]) -> None:
    """Print the results of Complete jobs, with their strategies' names, side by side."""
    table = Table(title="Results")
    table.add_column("")
    for placed, _, _ in results:
        table.add_column(placed.run.name, overflow="fold")
    add_row(table, "strategy", *(strategy for _, strategy, _ in results))
    for label, value_of in _ROWS:
        add_row(table, label, *(value_of(placed, result) for placed, _, result in results))
    console.print(table)


def _from_here(path: Path) -> str:
    """The path as it is typed from the current directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
