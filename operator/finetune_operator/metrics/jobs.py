"""The metrics of jobs: made from what is known of them at the moment of a scrape, so a job's series go when it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, StateSetMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from finetune_api.v1alpha1.status import Phase, Progress, Result

JOB_LABELS = ("namespace", "name")


@dataclass(frozen=True, slots=True)
class JobSample:
    """What is known of a job at one moment."""

    namespace: str
    name: str
    task: str
    strategy: str
    model: str
    phase: Phase
    progress: Progress | None = None
    result: Result | None = None

    @property
    def labels(self) -> tuple[str, str]:
        """Values of JOB_LABELS."""
        return (self.namespace, self.name)


# name, help, value; a job has no series of a metric whose value is not known.
_GAUGES: tuple[tuple[str, str, Callable[[Progress], float | None]], ...] = (
    (
        "progress_ratio",
        "Steps done of those planned, 0 to 1.",
        lambda p: p.step / p.total_steps if p.total_steps else None,
    ),
    ("steps_planned", "Optimizer steps planned.", lambda p: p.total_steps),
    ("loss", "Training loss, a mean over the last steps.", lambda p: p.loss),
    ("learning_rate", "Current learning rate of the body.", lambda p: p.learning_rate),
    ("grad_norm", "Norm of the last gradient before clipping.", lambda p: p.grad_norm),
    ("tokens_per_second", "Real tokens trained on per second, without padding.", lambda p: p.tokens_per_second),
    ("eta_seconds", "Expected seconds to the end of training.", lambda p: p.eta_seconds),
    (
        "memory_peak_bytes",
        "Most memory allocated: of the GPU, or of the process when trained on CPU.",
        lambda p: p.memory_peak_bytes,
    ),
)


class JobCollector(Collector):
    """Collects the metrics of the jobs that `jobs` returns."""

    def __init__(self, jobs: Callable[[], Iterable[JobSample]], now: Callable[[], datetime]) -> None:
        self._jobs = jobs
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """All families, also those without a job, so that their names are known from the start."""
        samples = list(self._jobs())
        yield _info(samples)
        yield _phase(samples)
        yield from _progress(samples)
        yield _evaluation(samples)
        yield _checkpoint_age(samples, self._now())


def _info(samples: list[JobSample]) -> Metric:
    family = InfoMetricFamily("finetune_job", "What a job is.", labels=JOB_LABELS)
    for job in samples:
        family.add_metric(job.labels, {"task": job.task, "strategy": job.strategy, "model": job.model})
    return family


def _phase(samples: list[JobSample]) -> Metric:
    family = StateSetMetricFamily(
        "finetune_job_phase", "The phase a job is in: 1 for it, 0 for others.", labels=JOB_LABELS
    )
    for job in samples:
        family.add_metric(job.labels, {phase.value: job.phase == phase for phase in Phase})
    return family


def _progress(samples: list[JobSample]) -> Iterator[Metric]:
    known = [(job, job.progress) for job in samples if job.progress is not None]
    steps = CounterMetricFamily("finetune_job_steps", "Optimizer steps done.", labels=JOB_LABELS)
    for job, progress in known:
        steps.add_metric(job.labels, progress.step)
    yield steps
    for name, documentation, value_of in _GAUGES:
        family = GaugeMetricFamily(f"finetune_job_{name}", documentation, labels=JOB_LABELS)
        for job, progress in known:
            if (value := value_of(progress)) is not None:
                family.add_metric(job.labels, value)
        yield family


def _evaluation(samples: list[JobSample]) -> Metric:
    family = GaugeMetricFamily(
        "finetune_job_eval_metric", "The newest evaluation, by metric.", labels=(*JOB_LABELS, "metric")
    )
    for job in samples:
        for metric, value in (job.progress.evaluation if job.progress else {}).items():
            family.add_metric((*job.labels, metric), value)
    return family


def _checkpoint_age(samples: list[JobSample], now: datetime) -> Metric:
    family = GaugeMetricFamily(
        "finetune_job_checkpoint_age_seconds", "Seconds since the newest checkpoint.", labels=JOB_LABELS
    )
    for job in samples:
        if job.phase == Phase.RUNNING and job.progress and (checkpoint := job.progress.last_checkpoint):
            family.add_metric(job.labels, max(0.0, (now - checkpoint.time).total_seconds()))
    return family
