"""The Kubernetes Events that a change of status is worth: one a transition that people wait for, none for waiting."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.v1alpha1.status import Condition, ConditionStatus, FineTuneJobStatus

NOTE_LIMIT = 1024
"""Bytes, as the API counts."""
_TOLD = ("Suspended", "Running", "Complete", "Failed")


@dataclass(frozen=True, slots=True)
class Event:
    """One Event, as data."""

    type: str
    """Normal or Warning."""
    reason: str
    note: str


def events_between(earlier: FineTuneJobStatus, later: FineTuneJobStatus) -> tuple[Event, ...]:
    """The Events of a transition. A job that is created suspended was never stopped: that is no Event."""
    before, after = _true(earlier), _true(later)
    events = []
    if "Suspended" in before and not after.keys() & {"Suspended", "Complete", "Failed"}:
        events.append(Event("Normal", "Resumed", "spec.suspend is false again"))
    for type_ in _TOLD:
        if type_ not in after or type_ in before or (type_ == "Suspended" and not earlier.conditions):
            continue
        failed = type_ == "Failed"
        told = after[type_]
        events.append(Event("Warning" if failed else "Normal", told.reason if failed else type_, told.message))
    return tuple(events)


def _true(status: FineTuneJobStatus) -> dict[str, Condition]:
    return {condition.type: condition for condition in status.conditions if condition.status == ConditionStatus.TRUE}
