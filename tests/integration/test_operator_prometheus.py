"""A real Prometheus scrapes the running operator and answers what a dashboard asks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from operator_jobs import job, last_words, pod_token, report, report_path, run_to_completion
from testbed.client import eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess
from testbed.prometheus import Prometheus, check_metrics

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

JOB = 'namespace="{namespace}",name="training"'
QUERIES: dict[str, tuple[str, float | None]] = {
    "progress": ("finetune_job_progress_ratio{{{job}}}", 0.25),
    "steps": ("finetune_job_steps_done{{{job}}}", 25),
    "loss": ("finetune_job_loss{{{job}}}", 0.5),
    "learning rate": ("finetune_job_learning_rate{{{job}}}", 0.001),
    "tokens per second": ("finetune_job_tokens_per_second{{{job}}}", 1234),
    "time to go": ("finetune_job_eta_seconds{{{job}}}", 90),
    "peak memory": ("finetune_job_memory_peak_bytes{{{job}}}", 2**30),
    "evaluation": ('finetune_job_eval_metric{{{job},metric="accuracy"}}', 0.75),
    "age of the checkpoint": ("finetune_job_checkpoint_age_seconds{{{job}}} < 3600", None),
    "since it was created": ("time() - finetune_job_creation_time_seconds{{{job}}} < 300", None),
    "since it started": ("time() - finetune_job_start_time_seconds{{{job}}} < 300", None),
    "since another ended": (
        'time() - finetune_job_completion_time_seconds{{namespace="{namespace}",name="badly"}} < 300',
        None,
    ),
    "jobs by phase": ('sum(finetune_job_phase{{namespace="{namespace}",finetune_job_phase="Running"}})', 1),
    "failed now": ('sum(finetune_job_phase{{namespace="{namespace}",finetune_job_phase="Failed"}})', 1),
    "what a job is": (
        "count(finetune_job_info{{{job}}} * on (namespace, name) group_left finetune_job_progress_ratio)",
        1,
    ),
    "failures by reason": (
        'sum by (reason) (finetune_jobs_ended_total{{namespace="{namespace}",outcome="Failed",reason="DataInvalid"}})',
        1,
    ),
    "completed": ('sum(finetune_jobs_ended_total{{namespace="{namespace}",outcome="Complete"}})', 1),
    "queue wait": (
        "histogram_quantile(0.95, sum by (le) (finetune_job_queue_wait_seconds_bucket{{namespace=\"{namespace}\"}}))",
        None,
    ),
    "duration": (
        "histogram_quantile(0.5, sum by (le) (finetune_job_duration_seconds_bucket{{namespace=\"{namespace}\"}}))",
        None,
    ),
    "reports by answer": ('sum(finetune_progress_reports_total{{code="200"}})', 1),
    "queue depth": ('workqueue_depth{{name="finetunejob"}}', 0),
    "time in the queue": ("histogram_quantile(0.99, sum by (le) (workqueue_queue_duration_seconds_bucket))", None),
    "reconciles": ("sum by (result) (controller_runtime_reconcile_total{{result=\"success\"}})", None),
    "time of a reconcile": (
        "histogram_quantile(0.99, sum by (le) (controller_runtime_reconcile_time_seconds_bucket))",
        None,
    ),
    "requests to the API server": ("sum(rate(rest_client_requests_total[30s]))", None),
    "requests it refused": ('sum(rest_client_requests_total{{code=~"4..|5.."}}) or vector(0)', None),
    "workers at work": ("controller_runtime_active_workers / controller_runtime_max_concurrent_reconciles", None),
    "leader": ("sum(leader_election_master_status)", 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def jobs(cluster: Cluster, operator: OperatorProcess) -> Namespace:
    """One job in training, one Complete and one Failed."""
    namespace = cluster.namespace()
    for name in ("training", "well", "badly"):
        namespace.apply(job(), name)
    run_to_completion(cluster, namespace, "well")
    pod = namespace.bound_pod("badly")
    cluster.kubelet.run(pod)
    namespace.until("badly", "Running")
    cluster.kubelet.end(pod, 11, message=last_words(11, "DataInvalid", "row 7 has no label"))
    namespace.until("badly", "Failed")
    training = namespace.bound_pod("training")
    cluster.kubelet.run(training)
    namespace.until("training", "Running")
    body = report(
        25, eta=90, loss=0.5, learning_rate=0.001, tokens_per_second=1234, memory_peak_bytes=2**30, eval_accuracy=0.75,
        last_checkpoint_step=20, last_checkpoint_time=time.time(),
    )  # fmt: skip
    assert operator.report(report_path(namespace, "training"), body, pod_token(cluster, namespace, training)) == 200
    return namespace


@pytest.fixture(scope="module")
def prometheus(
    jobs: Namespace, operator: OperatorProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    with Prometheus.scraping(operator.port, tmp_path_factory.mktemp("prometheus")) as running:
        eventually(lambda: running.query("count_over_time(up[30s]) >= 3"), "three scrapes")
        yield running


@pytest.mark.parametrize("question", QUERIES)
def test_prometheus_answers_what_a_dashboard_asks(prometheus: Prometheus, jobs: Namespace, question: str) -> None:
    template, expected = QUERIES[question]
    expression = template.format(job=JOB.format(namespace=jobs.name), namespace=jobs.name)
    value = prometheus.value(expression)
    assert value is not None, prometheus.query(expression)
    assert value == value, "not NaN"
    assert expected in (None, value)


def test_series_of_a_job_go_with_the_job(cluster: Cluster, prometheus: Prometheus, jobs: Namespace) -> None:
    series = f'count({{__name__=~"finetune_job_.+",namespace="{jobs.name}",name="well"}})'
    assert prometheus.value(series)
    cluster.client.delete(jobs.job_path("well"))
    eventually(lambda: not prometheus.query(series), "no series of the job is left")


@pytest.mark.usefixtures("jobs")
def test_promtool_finds_nothing_wrong_with_the_metrics(operator: OperatorProcess) -> None:
    assert check_metrics(operator.metrics()) == ""
