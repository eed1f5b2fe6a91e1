"""`kubectl finetune result`: what tuning did, and how to load the model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune_api.loading import base_to_copy, lines_that_load
from finetune_api.v1alpha1.status import Result
from finetune_cli.display import duration, number
from finetune_cli.kubectl.cluster import Cluster, ClusterProblem
from finetune_cli.kubectl.facts import Facts
from finetune_cli.text import add_row, say


def result(cluster: Cluster, namespace: str, name: str, console: Console) -> int:
    """Print it; returns 0. Raises ClusterProblem when there is no result yet, or never will be."""
    facts = Facts(cluster.job(namespace, name))
    found = facts.status.result
    if found is None:
        raise ClusterProblem(_why_none(facts))
    say(console, f"{namespace}/{name}: {facts.spec.get('task')}, strategy {facts.status.strategy}\n")
    console.print(_metrics(found))
    share = found.trainable_parameters / found.total_parameters if found.total_parameters else 0
    steps = f"{found.steps}{' (stopped early)' if found.stopped_early else ''}"
    say(console, f"\n{found.trainable_parameters:,} of {found.total_parameters:,} parameters trained ({share:.2%}), "
         f"{steps} steps in {duration(round(found.duration_seconds))}")  # fmt: skip
    say(console, f"Model   {found.uri}\n        {found.digest}\n\n{how_to_load(facts.trained_spec, found.uri)}")
    return 0


def _why_none(facts: Facts) -> str:
    if facts.has_ended:
        reason, message = facts.cause
        return f"{facts.name} has no result: {facts.phase}, {reason}: {message}"
    progress = facts.status.progress
    far = f", step {progress.step} of {progress.total_steps}" if progress else ""
    return f"{facts.name} has no result yet: {facts.state}{far}; wait for it with: " + (
        f"kubectl finetune watch {facts.name} -n {facts.namespace}"
    )


def _metrics(found: Result) -> Table:
    """Before and after, metric by metric; the one that decides first. What was forgotten comes last."""
    table = Table()
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    names = sorted({*found.before, *found.after}, key=lambda name: (name != found.metric, name))
    rows = [(name, found.before.get(name), found.after.get(name)) for name in names]
    if "before" in found.forgetting or "after" in found.forgetting:
        kept = (found.forgetting.get("before"), found.forgetting.get("after"))
        rows.append((f"{found.metric} on the retention rows", *kept))
    for name, before, after in rows:
        change = f"{after - before:+.4f}" if before is not None and after is not None else ""
        add_row(table, name, number(before), number(after), change, style="bold" if name == found.metric else "")
    if found.baseline is not None:
        add_row(table, f"{found.metric} without a model", number(found.baseline), "", "")
    if (divergence := found.forgetting.get("klToBase")) is not None and "klToBase" not in names:
        add_row(table, "KL(tuned, base), nats a prediction", "", number(divergence), "")
    return table


def how_to_load(spec: Mapping[str, Any], uri: str) -> str:
    """Where the files are, and the lines of Python that load them."""
    scheme, _, rest = uri.partition("://")
    claim, _, path = rest.partition("/")
    place, directory = {
        "pvc": (
            f"Mount the claim {claim} in a pod, say at /models; the model is the folder /models/{path}.\n",
            f"/models/{path}",
        ),
        "s3": (f"Copy it: aws s3 cp --recursive {shlex.quote(uri)} tuned\n", "tuned"),
        "file": ("", rest),
    }.get(scheme, (f"Copy {uri} to a directory, say tuned.\n", "tuned"))
    given = f"directory = {_literal(directory)}\n"
    if base := base_to_copy(spec):
        given += f'base_directory = "..."  # a copy of {base}\n'
    says_the_same = "Its README.md, the model card, says the same and what it was trained on."
    return f"{place}\n{given}{lines_that_load(spec)}\n{says_the_same}"


def _literal(text: str) -> str:
    """A text as Python writes it; what no screen can show is escaped as everywhere, which means the same there."""
    return json.dumps(text, ensure_ascii=False)
