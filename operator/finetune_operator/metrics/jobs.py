"""The metrics of jobs: made from what is known of them at the moment of a scrape, so a job's series go when it goes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from finetune_api.v1alpha1.status import Phase, Progress, Result
from finetune_operator.metrics.labels import DIVERGENCE, EVALUATIONS, FORGETTING, LOSS_TERMS, RETENTIONS

_PREFIX = "finetune_job_"


# name, help, value; a job has no series of a metric whose value is not known.
_GAUGES: tuple[tuple[str, str, Callable[[Progress], float | None]], ...] = (
    (
        "progress_ratio",
        "Steps done of those planned, 0 to 1.",
        lambda p: min(1.0, p.step / p.total_steps) if p.total_steps else None,
    ),
    # No counter: it goes back when a job goes on from a checkpoint, which Prometheus would take for so many new steps.
    ("steps_done", "Optimizer steps done; back to the checkpoint's when pods are lost.", lambda p: p.step),
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
    (
        "divergence",
        "KL divergence from what the model predicted before training, in nats a prediction.",
        lambda p: p.evaluation.get(DIVERGENCE),
    ),
)


_Values = tuple[tuple[str, float], ...]
"""Values by a name."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a progress and a result: a tenth of their memory, so that 10,000 jobs can be kept."""

    gauges: tuple[float | None, ...] = ()
    """In the order of _GAUGES."""
    terms: _Values = ()
    evaluation: _Values = ()
    retention: _Values = ()
    forgetting: _Values = ()
    checkpoint: datetime | None = None


def figures_of(progress: Progress | None, result: Result | None) -> Figures:
    """The numbers that have series."""
    forgetting = _known(result.forgetting, FORGETTING) if result else ()
    if progress is None:
        return Figures(forgetting=forgetting)
    if progress.forgetting is not None:
        forgetting = (*forgetting, ("drop", progress.forgetting))
    evaluation = progress.evaluation
    return Figures(
        gauges=tuple(value_of(progress) for _, _, value_of in _GAUGES),
        terms=_known(progress.loss_terms, LOSS_TERMS),
        evaluation=_known(evaluation, EVALUATIONS),
        retention=tuple((metric, evaluation[name]) for name, metric in RETENTIONS.items() if name in evaluation),
        forgetting=forgetting,
        checkpoint=progress.last_checkpoint.time if progress.last_checkpoint else None,
    )


def _known(metrics: Mapping[str, float], names: frozenset[str]) -> _Values:
    """A trainer may report any name; only names from a fixed set become label values."""
    return tuple((sys.intern(name), value) for name, value in metrics.items() if name in names)


@dataclass(frozen=True, slots=True)
class Times:
    """When a job was created, first ran and ended."""

    creation: datetime | None = None
    start: datetime | None = None
    completion: datetime | None = None


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
    times: Times = Times()

    @property
    def figures(self) -> Figures:
        """The numbers of its progress and result."""
        return self.stored or figures_of(self.progress, self.result)


_Known = list[tuple[JobSample, Figures]]


@dataclass(frozen=True, slots=True)
class _ByName:
    """A gauge with a series for each of some names."""

    name: str
    label: str
    documentation: str
    values_of: Callable[[Figures], _Values]


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
        known = [(job, job.figures) for job in self._jobs()]
        now = self._now()
        yield _family("", "What a job is.", "info", lambda: _info(known))
        yield _family("phase", "The phase a job is in: 1 for it, 0 for others.", "stateset", lambda: _phase(known))
        for name, documentation, time_of in _TIMES:
            name = f"{name}_time_seconds"
            yield _family(name, documentation, "gauge", partial(_time, known, name, time_of))
        for index, (name, documentation, _) in enumerate(_GAUGES):
            yield _family(name, documentation, "gauge", partial(_gauge, known, name, index))
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


def _info(known: _Known) -> Iterator[Sample]:
    for job, _ in known:
        about = {"task": job.task, "strategy": job.strategy, "model": job.model}
        yield Sample(f"{_PREFIX}info", {**_labels(job), **about}, 1)


def _phase(known: _Known) -> Iterator[Sample]:
    name = f"{_PREFIX}phase"
    for job, _ in known:
        for phase in sorted(Phase):
            yield Sample(name, {**_labels(job), name: phase.value}, job.phase == phase)


def _time(known: _Known, name: str, time_of: Callable[[Times], datetime | None]) -> Iterator[Sample]:
    for job, _ in known:
        if (moment := time_of(job.times)) is not None:
            yield Sample(f"{_PREFIX}{name}", _labels(job), moment.timestamp())


def _gauge(known: _Known, name: str, index: int) -> Iterator[Sample]:
    for job, figures in known:
        if figures.gauges and (value := figures.gauges[index]) is not None:
            yield Sample(f"{_PREFIX}{name}", _labels(job), value)


def _by_name(known: _Known, by: _ByName) -> Iterator[Sample]:
    for job, figures in known:
        for name, value in by.values_of(figures):
            yield Sample(f"{_PREFIX}{by.name}", {**_labels(job), by.label: name}, value)


def _age(known: _Known, now: datetime) -> Iterator[Sample]:
    for job, figures in known:
        if job.phase == Phase.RUNNING and figures.checkpoint is not None:
            seconds = max(0.0, (now - figures.checkpoint).total_seconds())
            yield Sample(f"{_PREFIX}checkpoint_age_seconds", _labels(job), seconds)


def _labels(job: JobSample) -> dict[str, str]:
    return {"namespace": job.namespace, "name": job.name}
