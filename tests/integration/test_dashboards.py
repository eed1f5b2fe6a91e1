"""Every query of every panel, asked of a real Prometheus that scraped the operator while jobs ran, has an answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operator_jobs import COMPLETE, job, last_words, pod_token, report, report_path
from testbed.client import eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess
from testbed.processes import HOST
from testbed.prometheus import Prometheus

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

FOLDER = Path(__file__).resolve().parents[2] / "helm" / "finetune-operator" / "files" / "dashboards"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
QUERIES = {
    f"{name}: {panel['title']} {target['refId']}": target["expr"]
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for target in panel.get("targets", ())
}
OPERATOR = "finetune-system"
VARIABLES = {
    f"{name}: {variable['name']}": variable["query"]["query"]
    for name, dashboard in DASHBOARDS.items()
    for variable in dashboard["templating"]["list"]
    if variable["type"] == "query"
}
REPORTED = {
    "loss": 0.5, "learning_rate": 0.001, "grad_norm": 1.5, "tokens_per_second": 1234, "memory_peak_bytes": 2**30,
    "loss_term_task": 0.375, "loss_term_response": 0.125,
    "eval_accuracy": 0.75, "eval_loss": 0.625, "eval_retentionAccuracy": 0.875, "eval_klToBase": 0.25,
    "forgetting": 0.0625, "last_checkpoint_step": 20,
}  # fmt: skip
VALUES: dict[str, dict[str, float]] = {
    "fleet: Jobs by phase A": {
        "Complete": 1, "Failed": 1, "Pending": 0, "Queued": 0, "Running": 1, "Suspended": 0,
    },
    "fleet: Jobs B": {"training": 0.25, "well": 1},
    "fleet: Failures by reason A": {"DataInvalid": 1},
    "fleet: Jobs that ended A": {"Complete": 1, "Failed": 1},
    "fleet: Leader A": {"": 1},
    "fleet: Failed reconciles A": {"": 0},
    "job: Phase A": {"Running": 1},
    "job: Progress A": {"": 0.25},
    "job: Steps A": {"": 25},
    "job: Steps B": {"": 100},
    "job: Time to go A": {"": 90},
    "job: Loss A": {"": 0.5},
    "job: Terms of the loss A": {"task": 0.375, "response": 0.125},
    "job: Learning rate A": {"": 0.001},
    "job: Norm of the gradient A": {"": 1.5},
    "job: Evaluation A": {"accuracy": 0.75},
    "job: Evaluation, losses A": {"loss": 0.625},
    "job: Retention rows A": {"accuracy": 0.875},
    "job: Forgetting A": {"drop": 0.0625},
    "job: KL(tuned, base) A": {"": 0.25},
    "job: Tokens a second A": {"": 1234},
    "job: Peak memory A": {"": 2**30},
}  # fmt: skip


@pytest.fixture(scope="module")
def prometheus(operator: OperatorProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It scrapes before there is any job, and as in a cluster: the target has a namespace, and jobs keep theirs."""
    target = {"targets": [f"{HOST}:{operator.port}"], "labels": {"namespace": OPERATOR}}
    how = {"honor_labels": True, "static_configs": [target]}
    with Prometheus.scraping(operator.port, tmp_path_factory.mktemp("prometheus"), **how) as running:
        yield running


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, operator: OperatorProcess, prometheus: Prometheus) -> Namespace:
    """One job in training that has reported everything, one Complete and one Failed."""
    namespace = cluster.namespace()
    for name in ("training", "well", "badly"):
        namespace.apply(job(), name)
    pods = {name: namespace.bound_pod(name) for name in ("training", "well", "badly")}
    for name, pod in pods.items():
        cluster.kubelet.run(pod)
        namespace.until(name, "Running")
    time.sleep(2)  # ends are told in whole seconds: jobs shorter than one would have taken no time
    cluster.kubelet.end(pods["well"], 0, message=COMPLETE)
    namespace.until("well", "Complete")
    cluster.kubelet.end(pods["badly"], 11, message=last_words(11, "DataInvalid", "row 7 has no label"))
    namespace.until("badly", "Failed")
    body = report(25, eta=90, last_checkpoint_time=time.time(), **REPORTED)
    assert (
        operator.report(report_path(namespace, "training"), body, pod_token(cluster, namespace, pods["training"]))
        == 200
    )
    # A rate needs two samples.
    seen = f'count_over_time(finetune_job_steps_done{{namespace="{namespace.name}",name="training"}}[1m])'
    eventually(lambda: prometheus.value(f"{seen} >= 3"), "the report in Prometheus, and some scrapes more")
    ended = f'sum(finetune_jobs_ended_total{{namespace="{namespace.name}"}})'
    eventually(lambda: prometheus.value(f"{ended} == 2"), "both ends in Prometheus")
    return namespace


def as_grafana_asks(expression: str, namespace: Namespace) -> str:
    """The expression with its variables filled in."""
    values = {
        "namespace": namespace.name,
        "job": "training",
        "operator": ".*",
        "__range": "2m",
        "__rate_interval": "5m",
    }
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


def by_label(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Values by the label that tells the samples apart."""
    found = {}
    for sample in samples:
        labels = {name: value for name, value in sample["metric"].items() if name != "namespace"}
        assert len(labels) <= 1, labels
        found["".join(labels.values())] = float(sample["value"][1])
    return found


@pytest.mark.parametrize("question", QUERIES)
def test_every_panel_has_data(prometheus: Prometheus, jobs: Namespace, question: str) -> None:
    expression = as_grafana_asks(QUERIES[question], jobs)
    samples = prometheus.query(expression)
    assert samples, expression
    numbers = [float(sample["value"][1]) for sample in samples]
    assert all(number == number for number in numbers), f"not NaN: {samples}"
    if question in VALUES:
        assert by_label(samples) == pytest.approx(VALUES[question])


def test_the_table_of_jobs_says_when_each_ended(prometheus: Prometheus, jobs: Namespace) -> None:
    ended = by_label(prometheus.query(as_grafana_asks(QUERIES["fleet: Jobs H"], jobs)))
    assert ended.keys() == {"well", "badly"}
    assert all(0 <= time.time() - milliseconds / 1000 < 300 for milliseconds in ended.values())


def test_every_expected_value_is_of_a_panel() -> None:
    assert VALUES.keys() <= QUERIES.keys()


def test_goodput_is_a_share_of_the_time_that_was_spent(prometheus: Prometheus, jobs: Namespace) -> None:
    share = prometheus.value(as_grafana_asks(QUERIES["fleet: Goodput A"], jobs))
    assert share is not None
    kept = prometheus.value(as_grafana_asks(QUERIES["fleet: Goodput time A"], jobs))
    causes = by_label(prometheus.query(as_grafana_asks(QUERIES["fleet: Badput by cause A"], jobs)))
    assert kept is not None
    assert kept >= 1
    assert sum(causes.values()) >= 1, "the time of the job that failed"
    assert share == pytest.approx(kept / (kept + sum(causes.values())))


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_has_what_runs_among_its_values(prometheus: Prometheus, jobs: Namespace, variable: str) -> None:
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[variable])
    assert found is not None
    selector, label = found.groups()
    samples = prometheus.query(as_grafana_asks(f"group by ({label}) ({selector})", jobs))
    wanted = {"fleet: operator": OPERATOR, "job: job": "training"}.get(variable, jobs.name)
    assert wanted in {sample["metric"][label] for sample in samples}
