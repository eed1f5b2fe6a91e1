"""The metrics of jobs: made from what is known of them at the moment of a scrape, so a job's series go when it goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, StateSetMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from finetune_api.v1alpha1.status import Phase, Progress, Result
from finetune_operator.metrics.labels import EVALUATIONS, FORGETTING

JOB_LABELS = ("namespace", "name")


# name, help, value; a job has no series of a metric whose value is not known.
_GAUGES: tuple[tuple[str, str, Callable[[Progress], float | None]], ...] = (
    (
        "progress_ratio",
        "Steps done of those planned, 0 to 1.",
        lambda p: min(1.0, p.step / p.total_steps) if p.total_steps else None,
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


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a progress and a result: a tenth of their memory, so that 10,000 jobs can be kept."""

    steps: int | None
    gauges: tuple[float | None, ...]
    """In the order of _GAUGES."""
    evaluation: tuple[tuple[str, float], ...]
    forgetting: tuple[tuple[str, float], ...]
    checkpoint: datetime | None


def figures_of(progress: Progress | None, result: Result | None) -> Figures:
    """The numbers that have series."""
    forgetting = _known(result.forgetting, FORGETTING) if result else ()
    if progress is None:
        return Figures(None, (), (), forgetting, None)
    return Figures(
        steps=progress.step,
        gauges=tuple(value_of(progress) for _, _, value_of in _GAUGES),
        evaluation=_known(progress.evaluation, EVALUATIONS),
        forgetting=forgetting,
        checkpoint=progress.last_checkpoint.time if progress.last_checkpoint else None,
    )


def _known(metrics: Mapping[str, float], names: frozenset[str]) -> tuple[tuple[str, float], ...]:
    """A trainer may report any name; only names from a fixed set become label values."""
    return tuple((sys.intern(name), value) for name, value in metrics.items() if name in names)


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
    stored: Figures | None = None
    """In place of progress and result, where only their numbers are kept."""

    @property
    def labels(self) -> tuple[str, str]:
        """Values of JOB_LABELS."""
        return (self.namespace, self.name)

    @property
    def figures(self) -> Figures:
        """The numbers of its progress and result."""
        return self.stored or figures_of(self.progress, self.result)


_Known = list[tuple[JobSample, Figures]]


class JobCollector(Collector):
    """Collects the metrics of the jobs that `jobs` returns."""

    def __init__(self, jobs: Callable[[], Iterable[JobSample]], now: Callable[[], datetime]) -> None:
        self._jobs = jobs
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """All families, also those without a job, so that their names are known from the start."""
        known = [(job, job.figures) for job in self._jobs()]
        samples = [job for job, _ in known]
        yield _info(samples)
        yield _phase(samples)
        yield from _progress(known)
        yield _by_metric("eval_metric", "The newest evaluation, by metric.", known, lambda figures: figures.evaluation)
        yield _by_metric(
            "forgetting", "What was forgotten, by measure, once Complete.", known, lambda figures: figures.forgetting
        )
        yield _checkpoint_age(known, self._now())


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


def _progress(known: _Known) -> Iterator[Metric]:
    steps = CounterMetricFamily("finetune_job_steps", "Optimizer steps done.", labels=JOB_LABELS)
    for job, figures in known:
        if figures.steps is not None:
            steps.add_metric(job.labels, figures.steps)
    yield steps
    for index, (name, documentation, _) in enumerate(_GAUGES):
        family = GaugeMetricFamily(f"finetune_job_{name}", documentation, labels=JOB_LABELS)
        for job, figures in known:
            if figures.gauges and (value := figures.gauges[index]) is not None:
                family.add_metric(job.labels, value)
        yield family


def _by_metric(
    name: str, documentation: str, known: _Known, values_of: Callable[[Figures], tuple[tuple[str, float], ...]]
) -> Metric:
    family = GaugeMetricFamily(f"finetune_job_{name}", documentation, labels=(*JOB_LABELS, "metric"))
    for job, figures in known:
        for metric, value in values_of(figures):
            family.add_metric((*job.labels, metric), value)
    return family


def _checkpoint_age(known: _Known, now: datetime) -> Metric:
    family = GaugeMetricFamily(
        "finetune_job_checkpoint_age_seconds", "Seconds since the newest checkpoint.", labels=JOB_LABELS
    )
    for job, figures in known:
        if job.phase == Phase.RUNNING and figures.checkpoint is not None:
            family.add_metric(job.labels, max(0.0, (now - figures.checkpoint).total_seconds()))
    return family
