"""`kubectl finetune list`: every job on a line, those that need somebody first."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from finetune_api.v1alpha1.status import Phase
from finetune_cli.display import duration, number
from finetune_cli.kubectl.cluster import Cluster
from finetune_cli.kubectl.facts import Facts, age, utc_now
from finetune_cli.text import add_row, say

_ORDER = (Phase.RUNNING, Phase.PENDING, Phase.QUEUED, Phase.SUSPENDED, Phase.FAILED, Phase.COMPLETE)


def list_jobs(cluster: Cluster, namespace: str | None, console: Console) -> int:
    """Print the jobs of a namespace, or of all; returns 0."""
    jobs = [Facts(job) for job in cluster.jobs(namespace)]
    if not jobs:
        place = f"namespace {namespace}" if namespace else "this cluster"
        say(console, f"no FineTuneJobs in {place}")
        return 0
    jobs.sort(key=lambda facts: (_ORDER.index(facts.phase), -facts.created.timestamp()))
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False)
    headings = (
        *(() if namespace else ("NAMESPACE",)),
        "NAME",
        "STATE",
        "STRATEGY",
        "PROGRESS",
        "LOSS",
        "METRIC",
        "ETA",
    )
    for heading in (*headings, "AGE"):
        table.add_column(heading, no_wrap=True)
    for facts in jobs:
        add_row(table, *(() if namespace else (facts.namespace,)), *_row(facts))
    # As kubectl's own lists: a terminal wraps what is too long for it, and a name cut in two could not be copied.
    needed = console.measure(table, options=console.options.update(max_width=sys.maxsize)).maximum
    console.width = max(console.width, needed)
    console.print(table)
    return 0


def _row(facts: Facts) -> tuple[str, ...]:
    status = facts.status
    progress = status.progress
    known = status.result.after if status.result else progress.evaluation if progress else {}
    value = known.get(facts.metric)
    return (
        facts.name,
        facts.state,
        status.strategy or "",
        f"{progress.percent} %" if progress else "",
        number(progress.loss) if progress else "",
        f"{facts.metric} {number(value)}" if value is not None else "",
        duration(progress.eta_seconds) if progress and progress.eta_seconds and not facts.has_ended else "",
        age((utc_now() - facts.created).total_seconds()),
    )
