"""Conditions as Kubernetes has them: the transition time moves only when the status does, and the clock is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.v1alpha1.status import Condition, ConditionStatus

MESSAGE_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said under one condition type."""

    status: bool
    reason: str
    message: str = ""


def merge(
    earlier: Iterable[Condition], verdicts: Mapping[str, Verdict], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The new list of conditions, in the order of the verdicts; types without a verdict go."""
    known = {condition.type: condition for condition in earlier}
    return tuple(_condition(type_, verdict, known.get(type_), generation, now) for type_, verdict in verdicts.items())


def is_true(conditions: Iterable[Condition], type_: str) -> bool:
    """Whether a condition is there and True."""
    return any(condition.type == type_ and condition.status == ConditionStatus.TRUE for condition in conditions)


def _condition(type_: str, verdict: Verdict, earlier: Condition | None, generation: int, now: datetime) -> Condition:
    status = ConditionStatus.TRUE if verdict.status else ConditionStatus.FALSE
    unchanged = earlier is not None and earlier.status == status
    return Condition(
        type=type_,
        status=status,
        observed_generation=generation,
        last_transition_time=earlier.last_transition_time if earlier and unchanged else now,
        reason=verdict.reason,
        message=verdict.message[:MESSAGE_LIMIT],
    )
