"""The scale benchmark's figures as Markdown, beside what was asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_CONNECTIONS = {"progress": "a new connection each time", "progress-kept": "a kept connection"}


def table(parts: dict[str, Any]) -> str:
    """One table for each question of which anything was measured."""
    figures = {name: part["figures"] for name, part in parts.items()}
    tables = []
    if "create" in figures:
        tables.append(_create(figures["create"]))
    if "hold" in figures:
        tables.append(_hold(figures["hold"]))
    if runs := {name: figures[key] for key, name in _CONNECTIONS.items() if key in figures}:
        tables.append(_progress(runs))
    return "\n\n".join(tables)


def _create(figures: dict[str, Any]) -> str:
    lines = [
        f"| {figures['num_jobs']:,} FineTuneJobs at once "
        "| Jobs/s | p50 wait, s | p99 wait, s | writes a job | CPU ms a job |",
        "|---|---|---|---|---|---|",
        "| target | >= 50 | | | <= 2.2 | |",
    ]
    names = {
        "operator": "finetune-operator",
        "operator_with_controllers": "finetune-operator, while pods are made of the Jobs",
        "tutorial_style": "kopf's tutorial style, synchronous client",
    }
    for key, name in names.items():
        row = figures[key]
        lines.append(
            f"| {name} | {row['jobs_per_second']:.0f} | {row['p50_wait_seconds']:.2f} | {row['p99_wait_seconds']:.2f} "
            f"| {row['writes_per_job']:.2f} | {row['cpu_ms_per_job']:.1f} |"
        )
    return "\n".join(lines)


def _hold(figures: dict[str, Any]) -> str:
    rest, restart = figures["at_rest"], figures["restart"]
    rows = [
        (f"writes in {rest['seconds']} s at rest", "0", f"{rest['writes']}"),
        ("CPU at rest, % of a core", "", f"{rest['cpu_percent_of_a_core']:.1f}"),
        ("writes after a restart", "0", f"{restart['writes']}"),
        ("CPU ms a job from start until all are reconciled", "<= 5", f"{restart['cpu_ms_per_job']:.2f}"),
        ("memory after a restart, MiB (peak)", "<= 150", _memory(restart)),
        ("memory after creating them all, MiB (peak)", "<= 150", _memory(rest)),
        ("memory after scrapes, MiB (peak)", "<= 150", _memory(restart["after_scrapes"])),
        ("a scrape of /metrics, s", "", f"{restart['scrape']['seconds']:.1f}"),
    ]
    return "\n".join([f"| {figures['num_jobs']:,} held | target | measured |", "|---|---|---|", *_rows(rows)])


def _progress(runs: dict[str, Any]) -> str:
    rows: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
        ("reports a second", "", lambda run: f"{run['reports_per_second']:.0f}"),
        ("refused or failed", "0", lambda run: f"{run['refused']}"),
        ("p50 answer after the first 20 s, ms", "", lambda run: f"{run['p50_ms']:.1f}"),
        ("p99 answer after the first 20 s, ms", "< 100", lambda run: f"{run['p99_ms']:.1f}"),
        ("p99 answer in the first 20 s, ms", "", lambda run: f"{run['p99_ms_in_the_first_20_s']:.1f}"),
        ("status writes of a job in 15 s", "<= 1", lambda run: f"{run['status_writes_per_job_in_15_s']:.2f}"),
        ("TokenReviews a minute", "", lambda run: f"{run['token_reviews_per_minute']:.0f}"),
        ("operator's CPU, % of a core", "", lambda run: f"{run['cpu_percent_of_a_core']:.0f}"),
        ("load generator's CPU, % of a core", "", lambda run: f"{run['load_cpu_percent_of_a_core']:.0f}"),
        ("operator's memory, MiB (peak)", "", _memory),
        ("a scrape of /metrics meanwhile, s", "", lambda run: f"{run['scrape_seconds']:.2f}"),
    ]
    num_jobs = next(iter(runs.values()))["num_jobs"]
    head = ["", f"{num_jobs:,} jobs report every 5 s", "target", *runs, ""]
    lines = [" | ".join(head).strip(), "|---" * (2 + len(runs)) + "|"]
    return "\n".join([*lines, *_rows([(name, target, *map(show, runs.values())) for name, target, show in rows])])


def _memory(figures: dict[str, Any]) -> str:
    return f"{figures['rss_mib']:.0f} ({figures['peak_rss_mib']:.0f})"


def _rows(rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]
