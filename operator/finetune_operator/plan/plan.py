"""The plan: from a snapshot to the difference that is to be applied. Pure; everything that can vary is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from finetune_api.problems import Problem
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.v1alpha1.status import FineTuneJobStatus, Phase
from finetune_operator.plan.builders.job import build_job
from finetune_operator.plan.diagnosis import evicted_too_often, failed_for_good
from finetune_operator.plan.events import Event, events_between
from finetune_operator.plan.given import GivenSpec, read_spec
from finetune_operator.plan.late import find_late
from finetune_operator.plan.needs import lost_needs, needs_of_pods
from finetune_operator.plan.run import make_run
from finetune_operator.plan.settings import PodSettings
from finetune_operator.plan.shape import shape_of
from finetune_operator.plan.snapshot import ObservedFineTuneJob, ObservedJob, Snapshot
from finetune_operator.plan.status import (
    PODS_RUNNING,
    Observation,
    has_ended,
    held_back,
    make_status,
    observe_phase,
    wait_for_last_words,
)
from finetune_operator.plan.stored import read_status

SPEC_INVALID = "SpecInvalid"
SPEC_REFUSED = "SpecRefused"
FIELD_UNKNOWN = "FieldUnknown"
NAME_TAKEN = "ChildNameTaken"
CHANGE_WAITS = "ChangeWaits"
RETRY_NAME_TAKEN = timedelta(minutes=1)
_CHANGE_WAITS = (
    "what was changed in spec.resources, spec.pod or spec.queueName takes a new Job, and these pods are not stopped "
    "for it: it is made when they end, or at once when the job is suspended, and then resumed"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order: create, change, delete, restore, then the status, and last the events."""

    create: tuple[dict[str, Any], ...] = ()
    """The Job, and before it what its pods need; one that is there already is left as it is."""
    change_child: dict[str, Any] = field(default_factory=dict)
    """Fields of the Job's spec that are to be changed."""
    delete_child: str | None = None
    """UID of the Job that is to be deleted."""
    restore: tuple[dict[str, Any], ...] = ()
    """What the pods of a Job that is there need, and may have lost."""
    delete_self: bool = False
    """The FineTuneJob's time to live is over."""
    status: dict[str, Any] | None = None
    """The whole status, when it differs from the one there is."""
    events: tuple[Event, ...] = ()
    """What people are told when the status is written."""
    requeue_after: timedelta | None = None
    """When to look again, though no event tells to."""


def make_plan(snapshot: Snapshot, settings: PodSettings, now: datetime) -> Plan:
    """What is to be done about a job."""
    job, child = snapshot.job, snapshot.child
    if job.being_deleted:
        return Plan()  # its children go by their owner reference
    earlier = read_status(job.status)
    given = read_spec(job.spec)
    if has_ended(earlier) and not _may_try_again(snapshot, earlier):
        return _after_the_end(snapshot, earlier, now)
    strategy = given.spec.strategy.name if given.spec else earlier.strategy
    if seen := _why_not_begun(snapshot, given, earlier):
        retry = RETRY_NAME_TAKEN if seen.reason == NAME_TAKEN else None
        return _with_status(snapshot, earlier, seen, strategy, now, requeue_after=retry)
    if child is not None and (seen := _exceeds_its_storage(snapshot, child, given.spec)):
        # First the status: with its Job go the pods that tell of it, and then nothing would if the write failed. The
        # Job goes at the next look, which is at once.
        return _with_status(snapshot, earlier, seen, strategy, now, requeue_after=timedelta())
    late = find_late(snapshot, earlier, now)
    seen = observe_phase(snapshot, late, now)
    if _is_to_go_on(snapshot, seen, earlier) and _has_change(snapshot, given, earlier):
        reason = CHANGE_WAITS if seen.reason == PODS_RUNNING else seen.reason
        seen = replace(seen, reason=reason, message=f"{seen.message}; {_CHANGE_WAITS}", change_waits=True)
    actions = _actions(snapshot, given, settings, seen)
    if seen.phase in (Phase.COMPLETE, Phase.FAILED):
        return _with_status(snapshot, earlier, seen, strategy, now, **actions)
    if child is not None and (reservation := given.reservation()):
        seen = replace(seen, message=f"{seen.message}; {reservation}")
    lost = tuple(lost_needs(snapshot, given.spec)) if seen.phase == Phase.PENDING else ()
    actions["restore"] = tuple(each.body for each in lost if each.due <= now)
    waits = (
        *(each.due - now for each in lost if each.due > now),
        wait_for_last_words(snapshot, now),
        held_back(snapshot, earlier.progress, now),
        late.look_again,
    )
    actions["requeue_after"] = min((wait for wait in waits if wait is not None), default=None)
    return _with_status(snapshot, earlier, seen, strategy, now, **actions)


def _why_not_begun(snapshot: Snapshot, given: GivenSpec, earlier: FineTuneJobStatus) -> Observation | None:
    """Why a job that has no Job gets none, where that is for its spec or its name."""
    job = snapshot.job
    if snapshot.own_child is not None:  # what runs is stopped by its user, and never for how its spec reads here
        return None
    refusals = "; ".join(map(str, _refusals(given)))
    if refusals and earlier.start_time is None:
        return Observation(Phase.FAILED, SPEC_INVALID, refusals)
    if snapshot.child is not None:
        message = f"a Job named {job.name} exists that is not this FineTuneJob's; delete it, or use another name"
        return Observation(Phase.PENDING, NAME_TAKEN, message)
    if job.is_to_stand_still:
        return None
    if refusals:
        until = "it has trained, and goes on when that is mended, or under a version of the operator that takes it"
        return Observation(Phase.PENDING, SPEC_REFUSED, f"{refusals}; {until}")
    if given.unknown:
        return Observation(Phase.PENDING, FIELD_UNKNOWN, "; ".join(map(str, given.unknown)))
    return None


def _refusals(given: GivenSpec) -> Sequence[Problem]:
    """Why a spec can never be run by this version. What a newer CRD let in waits for the operator that goes with it."""
    if given.unknown:
        return ()
    if given.spec is None:
        return given.invalid
    return _lost_with_the_pod(given.spec)


def _exceeds_its_storage(snapshot: Snapshot, child: ObservedJob, spec: FineTuneJobSpec | None) -> Observation | None:
    """The end of a job whose Job would try for ever."""
    if child.has_ended:
        return None
    cause = evicted_too_often(snapshot.pods, spec.backoff_limit if spec else child.backoff_limit)
    return Observation(Phase.FAILED, cause.reason, cause.message) if cause else None


def _has_other_shape(snapshot: Snapshot, given: GivenSpec) -> bool:
    """Whether only a new Job can take on the spec."""
    child = snapshot.own_child
    if child is None or child.being_deleted or child.has_ended or given.spec is None or given.unknown:
        return False
    return child.shape not in ("", shape_of(given.spec))


def _has_change(snapshot: Snapshot, given: GivenSpec, earlier: FineTuneJobStatus) -> bool:
    """Whether a change that only a new Job can take on is there; what cannot be read in whole may still have it."""
    if given.spec is None or given.unknown:
        return bool(earlier.change_waits)
    return _has_other_shape(snapshot, given)


def _is_to_go_on(snapshot: Snapshot, seen: Observation, earlier: FineTuneJobStatus) -> bool:
    """Whether its pods run, and nobody has asked for them to be stopped.

    While the status says Running, the API server lets such a change through only with a suspension, though the operator
    may see no more than how the spec is in the end. One that came before the status said so did not mean to stop them.
    """
    child = snapshot.own_child
    if seen.phase != Phase.RUNNING or snapshot.job.is_to_stand_still or child is None or child.suspended:
        return False
    return earlier.phase != Phase.RUNNING or bool(earlier.change_waits)


def _actions(snapshot: Snapshot, given: GivenSpec, settings: PodSettings, seen: Observation) -> dict[str, Any]:
    """What is to be done about the children of a job that has not ended."""
    job, child, spec = snapshot.job, snapshot.child, given.spec
    if child is None:
        # None is made for a suspended job: Kueue starts a Job that carries its label, and may put the label on itself.
        # And while a pod of an earlier Job still ends there is none either: two trainers must never share checkpoints.
        if job.is_to_stand_still or snapshot.leftover or spec is None:
            return {}
        run = make_run(job.namespace, job.name, job.uid, spec)
        return {"create": (*needs_of_pods(snapshot, spec), build_job(run, settings))}
    if child.being_deleted or child.has_ended:
        return {}
    is_changed = _has_other_shape(snapshot, given) and not seen.change_waits
    if is_changed or (child.queue and job.is_to_stand_still):
        return {"delete_child": child.uid}
    return {"change_child": _changes(job, child, spec)}


def _changes(job: ObservedFineTuneJob, child: ObservedJob, spec: FineTuneJobSpec | None) -> dict[str, Any]:
    """What of the Job's spec differs and can be changed in place."""
    pairs: dict[str, tuple[Any, Any]] = {}
    if spec is not None:
        pairs["backoffLimit"] = (child.backoff_limit, spec.backoff_limit)
        pairs["activeDeadlineSeconds"] = (child.active_deadline_seconds, spec.active_deadline_seconds)
    if not child.queue:  # else Kueue alone starts and stops it
        pairs["suspend"] = (child.suspended, job.is_to_stand_still)
    return {name: wanted for name, (found, wanted) in pairs.items() if found != wanted}


def _after_the_end(snapshot: Snapshot, earlier: FineTuneJobStatus, now: datetime) -> Plan:
    """Nothing but the time to live, a Job that still goes on, and what was seen later.

    That is a later generation, or what waits for it would hang, and restarts that were heard of only after the end.
    """
    seen = {"observed_generation": snapshot.job.generation}
    conditions = tuple(condition.model_copy(update=seen) for condition in earlier.conditions)
    restarts = max(earlier.restarts, snapshot.restarts)
    later = earlier.model_copy(update={**seen, "conditions": conditions, "restarts": restarts})
    status = later.to_json() if later != earlier else None
    remaining = _time_to_live(snapshot, earlier, now)
    if remaining is not None and remaining <= timedelta():
        return Plan(delete_self=True)
    return Plan(delete_child=_left_over(snapshot), status=status, requeue_after=remaining)


def _left_over(snapshot: Snapshot) -> str | None:
    """The UID of a Job that goes on though its FineTuneJob has ended; one that is about to end is not stopped.

    The Job of an end that the operator found itself is such a one. So is one that was made while a FineTuneJob was
    restored from a backup, before its status was.
    """
    child = snapshot.own_child
    if child is None or child.has_ended or child.being_deleted:
        return None
    is_ending = any(failed_for_good(pod) or (pod.is_first and pod.phase == "Succeeded") for pod in snapshot.pods)
    return None if is_ending else child.uid


def _time_to_live(snapshot: Snapshot, status: FineTuneJobStatus, now: datetime) -> timedelta | None:
    """How long a job that has ended is still kept; None when it has not ended, or is kept for ever."""
    seconds = snapshot.job.spec.get("ttlSecondsAfterFinished")
    if not isinstance(seconds, int) or status.completion_time is None:
        return None
    return status.completion_time + timedelta(seconds=seconds) - now


def _may_try_again(snapshot: Snapshot, earlier: FineTuneJobStatus) -> bool:
    """Whether the operator itself refused a job for its spec, and no trainer had the last word.

    The trainer's exit code 10 has the same reason: where one ever started, only a Job that goes on tells them apart.
    What never began waits for its user to mend it: another release may take it, but there may be a job in its stead.
    """
    if not any(c.type == "Failed" and c.reason == SPEC_INVALID for c in earlier.conditions):
        return False
    if (child := snapshot.own_child) is not None:
        is_restored = earlier.start_time is not None and earlier.start_time < snapshot.job.created
        goes_on = not child.has_ended and not any(failed_for_good(pod) for pod in snapshot.pods)
        return goes_on and not is_restored
    # A restored object begins with generation 1 again.
    return earlier.start_time is None and (earlier.observed_generation or 0) < snapshot.job.generation


def _with_status(
    snapshot: Snapshot,
    earlier: FineTuneJobStatus,
    seen: Observation,
    strategy: str | None,
    now: datetime,
    **actions: Any,
) -> Plan:
    status = make_status(snapshot, earlier, seen, strategy, now)
    if status == earlier:
        return Plan(**actions)
    if actions.get("requeue_after") is None and (remaining := _time_to_live(snapshot, status, now)) is not None:
        actions["requeue_after"] = max(remaining, timedelta())  # no event will tell of it
    return Plan(status=status.to_json(), events=events_between(earlier, status), **actions)


def _lost_with_the_pod(spec: FineTuneJobSpec) -> list[Problem]:
    """An output that a process of its own may have, but a pod would take with it."""
    if not spec.output.uri.startswith("file://"):
        return []
    hint = "use pvc://claim/path or s3://bucket/path, in a new job; file:// is for `finetune run`"
    return [Problem("spec.output.uri", f"{spec.output.uri} is inside the pod, and the model would go with it", hint)]
