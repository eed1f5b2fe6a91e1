"""The operator's own metrics, under the names that stock controller dashboards know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from finetune_api.v1alpha1.status import FineTuneJobStatus, Phase
from finetune_operator.metrics.goodput import shares
from finetune_operator.metrics.labels import reason_label
from finetune_operator.plan.plan import Plan
from finetune_operator.plan.snapshot import Snapshot
from finetune_operator.plan.stored import read_status

CONTROLLER = "finetunejob"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_SECONDS = (1, 5, 15, 30, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)


class OperatorMetrics:
    """Everything that is counted; what is a state is read when scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter and histogram, which nobody asks for
        controller, name = ("controller",), ("name",)

        def counter(metric: str, text: str, labels: Iterable[str]) -> Counter:
            return Counter(metric, text, tuple(labels), registry=registry)

        def gauge(metric: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(metric, text, tuple(labels), registry=registry)

        def histogram(
            metric: str, text: str, labels: Iterable[str], buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(metric, text, tuple(labels), registry=registry, buckets=buckets)

        self.reconciles = counter("controller_runtime_reconcile", "Reconciles, by result.", (*controller, "result"))
        self.reconcile_errors = counter("controller_runtime_reconcile_errors", "Failed reconciles.", controller)
        self.reconcile_seconds = histogram(
            "controller_runtime_reconcile_time_seconds", "Time of a reconcile.", controller
        )
        self.active_workers = gauge("controller_runtime_active_workers", "Workers at work.", controller)
        self.max_workers = gauge("controller_runtime_max_concurrent_reconciles", "Workers.", controller)
        self.queue_adds = counter("workqueue_adds", "Keys that came through the queue.", name)
        self.queue_retries = counter("workqueue_retries", "Keys queued again after a failure.", name)
        self.queue_depth = gauge("workqueue_depth", "Keys waiting in the queue.", name)
        self.queue_seconds = histogram("workqueue_queue_duration_seconds", "Time a key waits in the queue.", name)
        self.work_seconds = histogram("workqueue_work_duration_seconds", "Time of the work on a key.", name)
        self.longest_running = gauge(
            "workqueue_longest_running_processor_seconds", "How long the oldest work has been going on.", name
        )
        self.requests = counter("rest_client_requests", "Requests to the API server.", ("method", "code"))
        self.leader = gauge("leader_election_master_status", "1 when this replica leads.", name)
        self.certificate_end = gauge(
            "finetune_certificate_expiration_timestamp_seconds",
            "Until when the certificate in use is valid, in Unix time.",
            ("certificate",),
        )
        self.jobs_ended = counter(
            "finetune_jobs_ended", "Jobs that ended, by outcome and reason.", ("namespace", "outcome", "reason")
        )
        self.start_seconds = histogram(
            "finetune_job_queue_wait_seconds", "From a job's creation to its first pod.", ("namespace",), _LONG_SECONDS
        )
        self.first_step_seconds = histogram(
            "finetune_job_time_to_first_step_seconds",
            "From a job's creation to its first step.",
            ("namespace",),
            _LONG_SECONDS,
        )
        self.duration_seconds = histogram(
            "finetune_job_duration_seconds",
            "From a job's first pod to its end.",
            ("namespace", "outcome"),
            _LONG_SECONDS,
        )
        self.goodput = counter("finetune_goodput_seconds", "Time that jobs ran and kept the work of.", ("namespace",))
        self.badput = counter("finetune_badput_seconds", "All other time of jobs, by cause.", ("namespace", "cause"))
        self.reports = counter("finetune_progress_reports", "Progress reports, by answer.", ("code",))

    def plan_applied(self, snapshot: Snapshot, plan: Plan) -> None:
        """Count what a written status says for the first time."""
        earlier, later = read_status(snapshot.job.status), read_status(plan.status or {})
        namespace, created = snapshot.job.namespace, snapshot.job.created
        if later.start_time and not earlier.start_time:
            self.start_seconds.labels(namespace).observe(_seconds(created, later.start_time))
        if later.phase == Phase.RUNNING and _has_stepped(later) and not _has_stepped(earlier):
            at = later.progress.updated if later.progress else None
            self.first_step_seconds.labels(namespace).observe(_seconds(created, at or created))
        if later.phase and later.completion_time and not earlier.completion_time:
            outcome = later.phase.value
            reason = next(condition.reason for condition in later.conditions if condition.type == outcome)
            self.jobs_ended.labels(namespace, outcome, reason_label(reason)).inc()
            if later.start_time:
                seconds = _seconds(later.start_time, later.completion_time)
                self.duration_seconds.labels(namespace, outcome).observe(seconds)
        for cause, seconds in shares(snapshot, earlier, later):
            (self.badput.labels(namespace, cause) if cause else self.goodput.labels(namespace)).inc(seconds)

    def watch_queue(self, depth: Callable[[], int], longest_running: Callable[[], float]) -> None:
        """Read the queue's state when scraped."""
        self.queue_depth.labels(CONTROLLER).set_function(depth)
        self.longest_running.labels(CONTROLLER).set_function(longest_running)

    def watch_certificate(self, name: str, end: Callable[[], float]) -> None:
        """Read until when a server's certificate is valid when scraped."""
        self.certificate_end.labels(name).set_function(end)


def _has_stepped(status: FineTuneJobStatus) -> bool:
    return status.progress is not None and status.progress.step > 0


def _seconds(earlier: datetime, later: datetime) -> float:
    return max(0.0, (later - earlier).total_seconds())
