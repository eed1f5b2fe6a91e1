"""The metrics of jobs: made from what is known of them at the moment of a scrape, so a job's series go when it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from finetune_api.v1alpha1.status import Phase
from finetune_operator.metrics.figures import Figures, JobSample, Times, Values

_PREFIX = "finetune_job_"


# name, help, value; a job has no series of a metric whose value is not known.
_GAUGES: tuple[tuple[str, str, Callable[[Figures], float | None]], ...] = (
    ("progress_ratio", "Steps done of those planned, 0 to 1.", lambda f: f.progress_ratio),
    # No counter: it goes back when a job goes on from a checkpoint, which Prometheus would take for so many new steps.
    ("steps_done", "Optimizer steps done; back to the checkpoint's when pods are lost.", lambda f: f.steps_done),
    ("steps_planned", "Optimizer steps planned.", lambda f: f.steps_planned),
    ("loss", "Training loss, a mean over the last steps.", lambda f: f.loss),
    ("learning_rate", "Current learning rate of the body.", lambda f: f.learning_rate),
    ("grad_norm", "Norm of the last gradient before clipping.", lambda f: f.grad_norm),
    ("tokens_per_second", "Real tokens trained on per second, without padding.", lambda f: f.tokens_per_second),
    ("eta_seconds", "Expected seconds to the end of training.", lambda f: f.eta_seconds),
    (
        "memory_peak_bytes",
        "Most memory allocated: of the GPU, or of the process when trained on CPU.",
        lambda f: f.memory_peak_bytes,
    ),
    (
        "divergence",
        "KL divergence from what the model predicted before training, in nats a prediction.",
        lambda f: f.divergence,
    ),
)


@dataclass(frozen=True, slots=True)
class _ByName:
    """A gauge with a series for each of some names."""

    name: str
    label: str
    documentation: str
    values_of: Callable[[Figures], Values]


_TIMES: tuple[tuple[str, str, Callable[[Times], datetime | None]], ...] = (
    ("creation", "When the job was created, in Unix time.", lambda t: t.creation),
    ("start", "When its first trainer started, in Unix time.", lambda t: t.start),
    ("completion", "When it ended, in Unix time.", lambda t: t.completion),
)
"""By them alerts tell a job from an earlier one of its name."""

_BY_NAME = (
    _ByName("loss_term", "term", "Weighted parts of the training loss at the last step.", lambda f: f.terms),
    _ByName("eval_metric", "metric", "The newest evaluation, by metric.", lambda f: f.evaluation),
    _ByName("retention_metric", "metric", "The newest evaluation on the retention rows.", lambda f: f.retention),
    _ByName("forgetting", "metric", "What was forgotten of the retention rows, by measure.", lambda f: f.forgetting),
)


class JobCollector(Collector):
    """Collects the metrics of the jobs that `jobs` returns."""

    def __init__(self, jobs: Callable[[], Iterable[JobSample]], now: Callable[[], datetime]) -> None:
        self._jobs = jobs
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """All families, also those without a job, so that their names are known from the start."""
        known = list(self._jobs())
        now = self._now()
        yield _family("", "What a job is.", "info", lambda: _info(known))
        yield _family("phase", "The phase a job is in: 1 for it, 0 for others.", "stateset", lambda: _phase(known))
        for name, documentation, time_of in _TIMES:
            name = f"{name}_time_seconds"
            yield _family(name, documentation, "gauge", partial(_time, known, name, time_of))
        for name, documentation, value_of in _GAUGES:
            yield _family(name, documentation, "gauge", partial(_gauge, known, name, value_of))
        for by in _BY_NAME:
            yield _family(by.name, by.documentation, "gauge", partial(_by_name, known, by))
        yield _family(
            "checkpoint_age_seconds", "Seconds since the newest checkpoint.", "gauge", lambda: _age(known, now)
        )


class _Samples:
    """Made as they are read: those of thousands of jobs never lie in memory at once."""

    def __init__(self, make: Callable[[], Iterator[Sample]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Sample]:
        return self._make()


def _family(name: str, documentation: str, kind: str, make: Callable[[], Iterator[Sample]]) -> Metric:
    family = Metric(f"{_PREFIX}{name}".rstrip("_"), documentation, kind)
    family.samples = _Samples(make)  # type: ignore[assignment]  # they are only iterated over
    return family


def _info(known: list[JobSample]) -> Iterator[Sample]:
    for job in known:
        about = {"task": job.task, "strategy": job.strategy, "model": job.model}
        yield Sample(f"{_PREFIX}info", {**_labels(job), **about}, 1)


def _phase(known: list[JobSample]) -> Iterator[Sample]:
    name = f"{_PREFIX}phase"
    for job in known:
        for phase in sorted(Phase):
            yield Sample(name, {**_labels(job), name: phase.value}, job.phase == phase)


def _time(known: list[JobSample], name: str, time_of: Callable[[Times], datetime | None]) -> Iterator[Sample]:
    for job in known:
        if (moment := time_of(job.times)) is not None:
            yield Sample(f"{_PREFIX}{name}", _labels(job), moment.timestamp())


def _gauge(known: list[JobSample], name: str, value_of: Callable[[Figures], float | None]) -> Iterator[Sample]:
    for job in known:
        if (value := value_of(job.figures)) is not None:
            yield Sample(f"{_PREFIX}{name}", _labels(job), value)


def _by_name(known: list[JobSample], by: _ByName) -> Iterator[Sample]:
    for job in known:
        for name, value in by.values_of(job.figures):
            yield Sample(f"{_PREFIX}{by.name}", {**_labels(job), by.label: name}, value)


def _age(known: list[JobSample], now: datetime) -> Iterator[Sample]:
    for job in known:
        if job.phase == Phase.RUNNING and job.figures.checkpoint is not None:
            seconds = max(0.0, (now - job.figures.checkpoint).total_seconds())
            yield Sample(f"{_PREFIX}checkpoint_age_seconds", _labels(job), seconds)


def _labels(job: JobSample) -> dict[str, str]:
    return {"namespace": job.namespace, "name": job.name}
