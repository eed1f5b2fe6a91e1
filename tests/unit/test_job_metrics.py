"""The metrics of jobs as a scrape sees them."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from finetune_api.v1alpha1.status import CheckpointStatus, Phase, Progress
from finetune_cli.metrics import MetricsServer
from finetune_operator.metrics.figures import JobSample, figures_of
from finetune_operator.metrics.jobs import JobCollector

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
RUNNING = JobSample(
    namespace="team-a",
    name="router",
    task="TextClassification",
    strategy="Bottleneck",
    model="hf://org/model",
    phase=Phase.RUNNING,
    figures=figures_of(
        Progress(
            step=25,
            total_steps=100,
            percent=25,
            loss=0.5,
            learning_rate=1e-3,
            eta_seconds=60,
            evaluation={"accuracy": 0.9, "loss": 0.3},
            last_checkpoint=CheckpointStatus(step=20, time=NOW - timedelta(seconds=30)),
        ),
        None,
    ),
)
WAITING = JobSample("team-b", "later", "TextClassification", "Full", "pvc://models/m", Phase.PENDING)


def scrape(*jobs: JobSample) -> str:
    registry = CollectorRegistry()
    registry.register(JobCollector(lambda: jobs, lambda: NOW))
    return generate_latest(registry).decode()


def values(text: str, name: str) -> dict[tuple[str, ...], float]:
    """Label values (sorted by label name) to value, for one sample name."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("finetune_job_progress_ratio", 0.25),
        ("finetune_job_steps_done", 25),
        ("finetune_job_steps_planned", 100),
        ("finetune_job_loss", 0.5),
        ("finetune_job_learning_rate", 1e-3),
        ("finetune_job_eta_seconds", 60),
        ("finetune_job_checkpoint_age_seconds", 30),
    ],
)
def test_progress_is_exposed_by_namespace_and_name(name: str, value: float) -> None:
    assert values(scrape(RUNNING, WAITING), name) == {("router", "team-a"): value}


def test_what_is_not_known_has_no_series() -> None:
    assert values(scrape(RUNNING), "finetune_job_tokens_per_second") == {}


def test_evaluations_carry_the_metric_as_a_label() -> None:
    assert values(scrape(RUNNING), "finetune_job_eval_metric") == {
        ("accuracy", "router", "team-a"): 0.9,
        ("loss", "router", "team-a"): 0.3,
    }


def test_exactly_one_phase_is_on() -> None:
    phases = values(scrape(RUNNING, WAITING), "finetune_job_phase")
    assert {key for key, value in phases.items() if value} == {
        ("Running", "router", "team-a"),
        ("Pending", "later", "team-b"),
    }
    assert len(phases) == 2 * len(Phase)


def test_a_job_that_is_gone_has_no_series() -> None:
    assert "router" not in scrape(WAITING)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is not installed")
def test_promtool_finds_nothing_to_say() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape(RUNNING, WAITING), text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_local_server_answers_and_a_taken_port_is_no_failure() -> None:
    with MetricsServer(0, lambda: [RUNNING]) as first:
        port = int(first.url.split(":")[2].split("/")[0])
        with MetricsServer(port, lambda: [RUNNING]) as second:
            assert second.moved
            assert second.url != first.url
        with urllib.request.urlopen(first.url, timeout=5) as answer:
            assert b'finetune_job_loss{name="router",namespace="team-a"} 0.5' in answer.read()
