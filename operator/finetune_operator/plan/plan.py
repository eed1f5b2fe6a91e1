"""The plan: from a snapshot to the difference that is to be applied. Pure; everything that can vary is an argument."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from finetune_api.manifest import parse_spec
from finetune_api.problems import Problem, problems_of
from finetune_api.support import unsupported
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.v1alpha1.status import FineTuneJobStatus, Phase
from finetune_operator.plan.builders.claim import build_claim
from finetune_operator.plan.builders.job import build_job
from finetune_operator.plan.builders.service import build_service
from finetune_operator.plan.diagnosis import evicted_too_often
from finetune_operator.plan.events import Event, events_between
from finetune_operator.plan.run import make_run
from finetune_operator.plan.settings import PodSettings
from finetune_operator.plan.shape import shape_of
from finetune_operator.plan.snapshot import ObservedJob, Snapshot
from finetune_operator.plan.status import (
    Observation,
    has_ended,
    held_back,
    make_status,
    observe_phase,
    wait_for_last_words,
)
from finetune_operator.plan.stored import read_status

SPEC_INVALID = "SpecInvalid"
NAME_TAKEN = "ChildNameTaken"
RETRY_NAME_TAKEN = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order: create, change, delete, then the status, and last the events."""

    create: tuple[dict[str, Any], ...] = ()
    """Objects to be created; one that is there already is left as it is."""
    change_child: dict[str, Any] = field(default_factory=dict)
    """Fields of the Job's spec that are to be changed."""
    delete_child: str | None = None
    """UID of the Job that is to be deleted."""
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
    if has_ended(earlier) and not _may_try_again(snapshot, earlier):
        return _after_the_end(snapshot, earlier, now)
    is_foreign = child is not None and child.owner_uid != job.uid
    spec = _parse(snapshot, has_started=child is not None and not is_foreign)
    if isinstance(spec, list):
        seen = Observation(Phase.FAILED, SPEC_INVALID, "; ".join(map(str, spec)))
        # What runs by a spec that is no longer understood is stopped: a job that Failed must not go on.
        stop = child.uid if child and not is_foreign and not child.being_deleted else None
        return _with_status(snapshot, earlier, seen, None, now, delete_child=stop)
    if is_foreign:
        message = f"a Job named {job.name} exists that is not this FineTuneJob's; delete it, or use another name"
        seen = Observation(Phase.PENDING, NAME_TAKEN, message)
        return _with_status(snapshot, earlier, seen, spec.strategy.name, now, requeue_after=RETRY_NAME_TAKEN)
    if child is not None and not child.has_ended and (cause := evicted_too_often(snapshot.pods, spec.backoff_limit)):
        seen = Observation(Phase.FAILED, cause.reason, cause.message)
        stop = None if child.being_deleted else child.uid
        return _with_status(snapshot, earlier, seen, spec.strategy.name, now, delete_child=stop)
    seen = observe_phase(snapshot, spec, now)
    waits = (wait_for_last_words(snapshot, now), held_back(snapshot, earlier.progress, now))
    has_more = seen.phase not in (Phase.COMPLETE, Phase.FAILED)
    requeue_after = min((wait for wait in waits if wait is not None), default=None) if has_more else None
    actions = _actions(snapshot, spec, settings)
    return _with_status(snapshot, earlier, seen, spec.strategy.name, now, requeue_after=requeue_after, **actions)


def _actions(snapshot: Snapshot, spec: FineTuneJobSpec, settings: PodSettings) -> dict[str, Any]:
    """What is to be done about the children of a job that has not ended."""
    job, child = snapshot.job, snapshot.child
    if child is None:
        # None is made for a suspended job: Kueue starts a Job that carries its label, and may put the label on itself.
        # And while a pod of an earlier Job still ends there is none either: two trainers must never share checkpoints.
        if spec.suspend or snapshot.leftover:
            return {}
        run = make_run(job.namespace, job.name, job.uid, spec)
        children = (build_claim(run), build_service(run), build_job(run, settings))
        return {"create": tuple(child for child in children if child is not None)}
    if child.being_deleted or child.has_ended:
        return {}
    if child.shape not in ("", shape_of(spec)) or (child.queue and spec.suspend):
        return {"delete_child": child.uid}
    return {"change_child": _changes(child, spec)}


def _changes(child: ObservedJob, spec: FineTuneJobSpec) -> dict[str, Any]:
    """What of the Job's spec differs and can be changed in place."""
    pairs: dict[str, tuple[Any, Any]] = {
        "backoffLimit": (child.backoff_limit, spec.backoff_limit),
        "activeDeadlineSeconds": (child.active_deadline_seconds, spec.active_deadline_seconds),
    }
    if not child.queue:  # else Kueue alone starts and stops it
        pairs["suspend"] = (child.suspended, spec.suspend)
    return {name: wanted for name, (found, wanted) in pairs.items() if found != wanted}


def _after_the_end(snapshot: Snapshot, earlier: FineTuneJobStatus, now: datetime) -> Plan:
    """Nothing but the time to live, and what was seen later.

    That is a later generation, or what waits for it would hang, and restarts that were heard of only after the end.
    """
    seen = {"observed_generation": snapshot.job.generation}
    conditions = tuple(condition.model_copy(update=seen) for condition in earlier.conditions)
    restarts = max(earlier.restarts, snapshot.restarts)
    later = earlier.model_copy(update={**seen, "conditions": conditions, "restarts": restarts})
    status = later.to_json() if later != earlier else None
    remaining = _time_to_live(snapshot, earlier, now)
    if remaining is None:
        return Plan(status=status)
    return Plan(delete_self=True) if remaining <= timedelta() else Plan(status=status, requeue_after=remaining)


def _time_to_live(snapshot: Snapshot, status: FineTuneJobStatus, now: datetime) -> timedelta | None:
    """How long a job that has ended is still kept; None when it has not ended, or is kept for ever."""
    seconds = snapshot.job.spec.get("ttlSecondsAfterFinished")
    if not isinstance(seconds, int) or status.completion_time is None:
        return None
    return status.completion_time + timedelta(seconds=seconds) - now


def _may_try_again(snapshot: Snapshot, earlier: FineTuneJobStatus) -> bool:
    """A job refused for its spec was not at fault in what it did; when the spec is mended it may try."""
    refused = any(c.type == "Failed" and c.reason == SPEC_INVALID for c in earlier.conditions)
    return refused and earlier.observed_generation != snapshot.job.generation


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
    if (remaining := _time_to_live(snapshot, status, now)) is not None:
        actions["requeue_after"] = max(remaining, timedelta())  # no event will tell of it
    return Plan(status=status.to_json(), events=events_between(earlier, status), **actions)


def _parse(snapshot: Snapshot, has_started: bool) -> FineTuneJobSpec | list[Problem]:
    """The spec, or why it is refused. What runs already is not refused by a release that supports less."""
    try:
        spec = parse_spec(snapshot.job.spec)
    except ValidationError as error:
        return problems_of(error)
    return spec if has_started else [*unsupported(spec), *_lost_with_the_pod(spec)] or spec


def _lost_with_the_pod(spec: FineTuneJobSpec) -> list[Problem]:
    """An output that a process of its own may have, but a pod would take with it."""
    if not spec.output.uri.startswith("file://"):
        return []
    hint = "use pvc://claim/path or s3://bucket/path, in a new job; file:// is for `finetune run`"
    return [Problem("spec.output.uri", f"{spec.output.uri} is inside the pod, and the model would go with it", hint)]
