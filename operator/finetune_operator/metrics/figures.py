"""What the store keeps of a job for its metrics: its numbers and times, a tenth of the memory of the objects."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.measures import DIVERGENCE
from finetune_api.v1alpha1.status import Phase, Progress, Result
from finetune_operator.metrics.labels import EVALUATIONS, FORGETTING, LOSS_TERMS, RETENTIONS

Values = tuple[tuple[str, float], ...]
"""Values by a name."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The numbers of a progress and a result; what is not known is None."""

    progress_ratio: float | None = None
    steps_done: int | None = None
    steps_planned: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    memory_peak_bytes: int | None = None
    divergence: float | None = None
    terms: Values = ()
    evaluation: Values = ()
    retention: Values = ()
    forgetting: Values = ()
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
        progress_ratio=min(1.0, progress.step / progress.total_steps) if progress.total_steps else None,
        steps_done=progress.step,
        steps_planned=progress.total_steps,
        loss=progress.loss,
        learning_rate=progress.learning_rate,
        grad_norm=progress.grad_norm,
        tokens_per_second=progress.tokens_per_second,
        eta_seconds=progress.eta_seconds,
        memory_peak_bytes=progress.memory_peak_bytes,
        divergence=evaluation.get(DIVERGENCE),
        terms=_known(progress.loss_terms, LOSS_TERMS),
        evaluation=_known(evaluation, EVALUATIONS),
        retention=tuple((metric, evaluation[name]) for name, metric in RETENTIONS.items() if name in evaluation),
        forgetting=forgetting,
        checkpoint=progress.last_checkpoint.time if progress.last_checkpoint else None,
    )


def _known(metrics: Mapping[str, float], names: frozenset[str]) -> Values:
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
    figures: Figures = Figures()
    times: Times = Times()
