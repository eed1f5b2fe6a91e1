"""The progress protocol's body, as Kubeflow Trainer defines it and Hugging Face's `Trainer` sends it.

`{"trainerStatus": {progressPercentage, estimatedRemainingSeconds, metrics: [{name, value}], lastUpdatedTime}}`, values
as strings. Our trainer uses the metric names that transformers' KubeflowCallback uses, so one reader serves both; and
it has one field more, `choice`, which other readers pass over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.v1alpha1.status import CheckpointStatus, Progress, StrategyChoice

MAX_BODY_BYTES = 64 * 1024
_EVALUATION_PREFIX = "eval_"
_TERM_PREFIX = "loss_term_"
_NOT_OF_THE_MODEL = frozenset(
    {"runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time"}
)
"""What transformers reports with an evaluation, and is none of its results."""
_MAX_COUNT = 2**53
_MAX_METRICS = 32


class _Message(BaseModel):
    # Unknown fields are passed over: other senders may be newer than we are.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class ReportedMetric(_Message):
    """One number, as a string."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    value: Annotated[str, Field(max_length=64)]


class ReportedChoice(_Message):
    """What strategy.auto chose, and why."""

    strategy: str
    reason: str


class TrainerStatus(_Message):
    """One report."""

    progress_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    estimated_remaining_seconds: Annotated[int, Field(ge=0, le=_MAX_COUNT)] | None = None
    metrics: Annotated[tuple[ReportedMetric, ...], Field(max_length=256)] = ()
    choice: ReportedChoice | None = None
    last_updated_time: AwareDatetime


class Report(_Message):
    """The request's body."""

    trainer_status: TrainerStatus


def report_of(progress: Progress, now: datetime) -> Report:
    """The report that says a progress."""
    return Report(
        trainer_status=TrainerStatus(
            progress_percentage=progress.percent,
            estimated_remaining_seconds=progress.eta_seconds,
            metrics=tuple(ReportedMetric(name=name, value=f"{value:.12g}") for name, value in _numbers(progress)),
            choice=ReportedChoice(**progress.choice.model_dump()) if progress.choice else None,
            last_updated_time=now,
        )
    )


def progress_of(report: Report, earlier: Progress | None = None) -> Progress:
    """The progress that a report says. Numbers that are not finite, or no numbers, are absent.

    transformers' first and last report leave out what the others say, which is then taken from the earlier one.
    """
    status = report.trainer_status
    values = {metric.name: number for metric in status.metrics if (number := _finite(metric.value)) is not None}
    total_steps = _count(values.get("total_steps")) or (earlier.total_steps if earlier else 0)
    percent = status.progress_percentage or 0
    step = _count(values.get("current_step"))
    return Progress(
        step=step if step is not None else percent * total_steps // 100,
        total_steps=total_steps,
        percent=percent,
        epoch=values.get("current_epoch", values.get("epoch")),
        eta_seconds=status.estimated_remaining_seconds,
        loss=values.get("loss"),
        learning_rate=values.get("learning_rate"),
        grad_norm=values.get("grad_norm"),
        tokens_per_second=values.get("tokens_per_second"),
        memory_peak_bytes=_count(values.get("memory_peak_bytes")),
        loss_terms=_with_prefix(_TERM_PREFIX, values),
        evaluation=_with_prefix(_EVALUATION_PREFIX, values),
        forgetting=values.get("forgetting"),
        last_checkpoint=_last_checkpoint(values),
        choice=_choice(status.choice),
        updated=status.last_updated_time,
    )


def _with_prefix(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    found = {
        name.removeprefix(prefix)[:64]: value
        for name, value in values.items()
        if name.startswith(prefix) and name.removeprefix(prefix) not in {"", *_NOT_OF_THE_MODEL}
    }
    return dict(list(found.items())[:_MAX_METRICS])


def _last_checkpoint(values: Mapping[str, float]) -> CheckpointStatus | None:
    step, saved_at = _count(values.get("last_checkpoint_step")), values.get("last_checkpoint_time")
    if step is None or saved_at is None:
        return None
    try:
        return CheckpointStatus(step=step, time=datetime.fromtimestamp(saved_at, UTC))
    except (ValueError, OverflowError, OSError):
        return None  # no time that a calendar has


def _choice(reported: ReportedChoice | None) -> StrategyChoice | None:
    if reported is None:
        return None
    try:
        return StrategyChoice.model_validate(reported.model_dump())
    except ValidationError:
        return None  # a strategy that only a newer trainer knows


def _numbers(progress: Progress) -> Iterator[tuple[str, float]]:
    named: dict[str, float | None] = {
        "current_step": progress.step,
        "total_steps": progress.total_steps,
        "current_epoch": progress.epoch,
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "grad_norm": progress.grad_norm,
        "tokens_per_second": progress.tokens_per_second,
        "memory_peak_bytes": progress.memory_peak_bytes,
        "forgetting": progress.forgetting,
    }
    if progress.last_checkpoint:
        named["last_checkpoint_step"] = progress.last_checkpoint.step
        named["last_checkpoint_time"] = progress.last_checkpoint.time.timestamp()
    named |= {f"{_TERM_PREFIX}{name}": value for name, value in progress.loss_terms.items()}
    named |= {f"{_EVALUATION_PREFIX}{name}": value for name, value in progress.evaluation.items()}
    return ((name, value) for name, value in named.items() if value is not None)


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _count(value: float | None) -> int | None:
    return int(value) if value is not None and 0 <= value <= _MAX_COUNT else None
