"""docs/metrics.md names what the registry exposes: every metric with its type and its labels, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from finetune_api.v1alpha1.status import Phase
from finetune_operator.engine.store import Store
from finetune_operator.metrics.goodput import Cause
from finetune_operator.metrics.jobs import JobCollector
from finetune_operator.metrics.labels import EVALUATIONS, FORGETTING, LOSS_TERMS, REASONS
from finetune_operator.metrics.operator import OperatorMetrics
from plan_builders import NOW, make_job
from status_samples import full_status

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `(?P<name>[a-z_0-9]+)` \| (?P<type>[a-z ]+) \| (?P<labels>[^|]*) \| (?P<text>[^|]+) \|$")


def full_registry() -> CollectorRegistry:
    """Every metric, each with one series at least."""
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    for metric in vars(metrics).values():
        if metric._labelnames:
            metric.labels(*("x" for _ in metric._labelnames))
    store = Store()
    running = full_status().model_copy(update={"phase": Phase.RUNNING})
    store.put_fine_tune_job(make_job().status(running.to_json()).obj())
    registry.register(JobCollector(store.samples, lambda: NOW))
    return registry


def exposed() -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every metric, by the name that a query uses."""
    suffixes = {"counter": "_total", "info": "_info"}
    return {
        family.name + suffixes.get(family.type, ""): (
            {"stateset": "state set"}.get(family.type, family.type),
            frozenset(label for sample in family.samples for label in sample.labels if label != "le"),
        )
        for family in text_string_to_metric_families(generate_openmetrics(full_registry()).decode())
    }


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    rows = [match for line in DOCS.read_text().splitlines() if (match := _ROW.match(line))]
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: (row["type"], frozenset(re.findall(r"`(\w+)`", row["labels"]))) for row in rows}


def test_every_metric_is_documented_with_its_type_and_labels_and_no_other() -> None:
    assert documented() == exposed()


@pytest.mark.parametrize(
    "values", [EVALUATIONS, FORGETTING, LOSS_TERMS, REASONS, frozenset(Cause)], ids=["eval", "f", "t", "r", "c"]
)
def test_every_value_of_a_fixed_set_is_documented(values: frozenset[str]) -> None:
    text = DOCS.read_text()
    assert [value for value in sorted(values) if f"`{value}`" not in text] == []


def test_units_are_prometheus_base_units() -> None:
    for name in exposed():
        assert not re.search(r"_(ms|milliseconds|minutes|hours|percent|kb|mib|gib)(_|$)", name)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    text = generate_latest(full_registry()).decode()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
