"""What the operator counts when a status is written: each thing once, under labels from fixed sets."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from finetune_api.v1alpha1.status import Progress
from finetune_operator.metrics.labels import REASONS
from finetune_operator.metrics.operator import CONTROLLER, OperatorMetrics
from finetune_operator.plan.plan import make_plan
from plan_builders import (
    SETTINGS,
    ChildBuilder,
    JobBuilder,
    PodBuilder,
    at,
    make_child,
    make_job,
    make_pod,
    make_progress,
    snapshot,
)


class Counted:
    """An operator's metrics, and a job whose statuses are written."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = OperatorMetrics(self.registry)
        self.job: JobBuilder = make_job()

    def write(
        self, seconds: float, child: ChildBuilder | None, *pods: PodBuilder, progress: Progress | None = None
    ) -> None:
        observed = snapshot(self.job, child, *pods, progress=progress)
        plan = make_plan(observed, SETTINGS, at(seconds))
        if plan.status is not None:
            self.metrics.plan_applied(observed, plan)
            self.job.status(plan.status)

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"namespace": "team-a", **labels})


def test_a_jobs_life_is_counted_once() -> None:
    counted = Counted()
    counted.write(0, None)
    counted.write(33, make_child(), make_pod().scheduled(at(10)).running(at(30)))
    counted.write(50, make_child(), make_pod().running(at(30)), progress=make_progress(0))
    counted.write(90, make_child(), make_pod().running(at(30)), progress=make_progress(2))
    counted.write(110, make_child(), make_pod().running(at(30)), progress=make_progress(7))
    for _ in range(2):
        counted.write(132, make_child().complete(at(130)), make_pod().succeeded(since=at(30)))
    assert counted.value("finetune_job_queue_wait_seconds_sum") == 30
    assert counted.value("finetune_job_queue_wait_seconds_count") == 1
    assert counted.value("finetune_job_time_to_first_step_seconds_sum") == 90
    assert counted.value("finetune_job_time_to_first_step_seconds_count") == 1
    assert counted.value("finetune_jobs_ended_total", outcome="Complete", reason="Complete") == 1
    assert counted.value("finetune_job_duration_seconds_sum", outcome="Complete") == 100
    assert counted.value("finetune_goodput_seconds_total") == 97
    assert counted.value("finetune_badput_seconds_total", cause="Scheduling") == 10
    assert counted.value("finetune_badput_seconds_total", cause="Starting") == 23


def test_a_job_that_resumes_has_had_its_first_step() -> None:
    counted = Counted()
    counted.write(10, make_child(), make_pod().running(at(5)), progress=make_progress(2))
    counted.write(60, make_child(), make_pod().failed(41), progress=make_progress(3))
    counted.write(90, make_child(), make_pod().failed(41), make_pod(1).running(at(80)), progress=make_progress(4))
    assert counted.value("finetune_job_time_to_first_step_seconds_count") == 1


def test_a_job_that_ends_before_it_reports_has_no_time_to_its_first_step() -> None:
    counted = Counted()
    counted.write(10, make_child(), make_pod().running(at(5)))
    counted.write(60, make_child().complete(at(60)), make_pod().succeeded(), progress=make_progress(100))
    assert counted.value("finetune_job_time_to_first_step_seconds_count") is None


def test_a_job_that_never_ran_has_no_duration() -> None:
    counted = Counted()
    counted.job.spec(task="Poetry")
    counted.write(1, None)
    assert counted.value("finetune_jobs_ended_total", outcome="Failed", reason="SpecInvalid") == 1
    assert counted.value("finetune_job_duration_seconds_count", outcome="Failed") is None


def test_a_reason_that_nobody_knows_is_other() -> None:
    counted = Counted()
    counted.write(99, make_child().fails(at(1), "ReasonOfANewerKubernetes"))
    assert "ReasonOfANewerKubernetes" not in REASONS
    assert counted.value("finetune_jobs_ended_total", outcome="Failed", reason="Other") == 1


def test_a_status_of_another_version_is_no_obstacle() -> None:
    counted = Counted()
    counted.job.status({"phase": "Melting", "conditions": "none", "startTime": 5})
    counted.write(10, make_child().complete(at(5)), make_pod().succeeded())
    assert counted.value("finetune_jobs_ended_total", outcome="Complete", reason="Complete") == 1


def test_the_queue_is_read_when_scraped() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    depth = 3
    metrics.watch_queue(lambda: depth, lambda: 7.5)
    labels = {"name": CONTROLLER}
    assert registry.get_sample_value("workqueue_depth", labels) == 3
    depth = 4
    assert registry.get_sample_value("workqueue_depth", labels) == 4
    assert registry.get_sample_value("workqueue_longest_running_processor_seconds", labels) == 7.5


def test_until_when_a_certificate_is_valid_is_read_when_scraped_and_of_each_server() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    ends = {"progress": 2.0e9, "metrics": 2.1e9}
    for name in ends:
        metrics.watch_certificate(name, lambda name=name: ends[name])  # type: ignore[misc]

    def read() -> dict[str, float | None]:
        metric = "finetune_certificate_expiration_timestamp_seconds"
        return {name: registry.get_sample_value(metric, {"certificate": name}) for name in ends}

    assert read() == ends
    ends["progress"] = 2.2e9
    assert read() == ends
