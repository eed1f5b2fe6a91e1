"""Tells what should have happened to a job's pods by now: that nothing happens is no event."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.status import FineTuneJobStatus
from finetune_operator.plan.diagnosis import Diagnosis, failed_for_good, why_pod_failed
from finetune_operator.plan.snapshot import ObservedJob, ObservedPod, Snapshot

_TOLD = 300
"""What is told at most of what is not the cause itself."""

_WITHOUT_FINALIZERS = '--type=merge --patch=\'{"metadata":{"finalizers":null}}\''

PODS_REFUSED = "PodsRefused"
HELD_BY_FINALIZER = "HeldByFinalizer"
HELD_BY_SIDECAR = "HeldBySidecar"

NOTED_AFTER = timedelta(seconds=10)
"""The Job controller makes a job's first pods within seconds: a healthy start notes nothing."""

CREATION_GRACE = timedelta(seconds=10)
"""What it may take from then on."""

RETRY_GRACE = timedelta(minutes=11)
"""After failures it waits for up to ten minutes before it makes the next ones."""

STOP_GRACE = timedelta(seconds=30)
"""What a kubelet may take to say that a pod has stopped, after the pod's own grace period; and finalizers of a Job."""

END_GRACE = timedelta(seconds=30)
"""What other containers may take to end after the trainer's."""


@dataclass(frozen=True, slots=True)
class Late:
    """What has not happened to a job's pods by now."""

    cause: Diagnosis | None
    """What is wrong; None while nothing is late."""
    missing_since: datetime | None
    """Since when pods are missing, for the next plan to know."""
    look_again: timedelta | None
    """How long until something is late; None when nothing is awaited."""


@dataclass(frozen=True, slots=True)
class _Awaited:
    due: datetime
    cause: Diagnosis | None
    """What is wrong when it has not happened by then; None where it is only to be noted."""


def find_late(snapshot: Snapshot, earlier: FineTuneJobStatus, now: datetime) -> Late:
    """What has not happened in time, and when to look again."""
    begun = _makes_pods_since(snapshot, earlier, now)
    since = None if begun is None else _noted_since(begun, earlier, now)
    awaited = list(_awaited(snapshot, begun, since))
    return Late(
        next((each.cause for each in awaited if each.due <= now), None),
        since,
        min((each.due - now for each in awaited if each.due > now), default=None),
    )


def _awaited(snapshot: Snapshot, begun: datetime | None, since: datetime | None) -> Iterator[_Awaited]:
    """What is to happen; `begun` is since when pods may be missing, `since` since when that is noted."""
    child = snapshot.own_child
    if child is None or child.has_ended:
        return
    if child.deleted_at and child.held_by and all(pod.has_ended for pod in snapshot.pods):
        yield _Awaited(child.deleted_at + STOP_GRACE, _held_by_finalizer(snapshot, child))
    for pod in snapshot.pods:
        if pod.stops_by and pod.node and not pod.has_ended:
            yield _Awaited(pod.stops_by + STOP_GRACE, _not_stopping(snapshot.job.namespace, pod))
        if pod.trained_until and pod.others_running and pod.is_living:
            yield _Awaited(pod.trained_until + END_GRACE, _held(pod))
    if since is not None:
        grace = RETRY_GRACE if _had_other_pods(snapshot, child, since) else CREATION_GRACE
        yield _Awaited(since + grace, _refused(snapshot, child))
    elif begun is not None:
        yield _Awaited(begun + NOTED_AFTER, None)


def _noted_since(begun: datetime, earlier: FineTuneJobStatus, now: datetime) -> datetime | None:
    """Since when pods are missing; None when none is for long.

    Pods that are gone do not tell when they went, and that a job is pending does not tell that it had none: so it is
    noted in the status when they are first seen to be missing.
    """
    known = earlier.pods_missing_since
    if known is not None and known >= begun.replace(microsecond=0):
        return known
    return now.replace(microsecond=0) if now - begun >= NOTED_AFTER else None


def _makes_pods_since(snapshot: Snapshot, earlier: FineTuneJobStatus, now: datetime) -> datetime | None:
    """Since when at the earliest the Job is to make pods that are not there; None when it has them, or is to end."""
    child = snapshot.own_child
    if child is None or child.suspended or child.being_deleted or child.has_ended or child.start_time is None:
        return None
    made = {pod.index for pod in snapshot.pods if not pod.has_ended or pod.phase == "Succeeded"}
    if max(len(made), child.num_pods) >= child.nodes or any(failed_for_good(pod) for pod in snapshot.pods):
        return None
    return max(child.start_time, _pending_since(earlier, now), *(pod.created for pod in snapshot.pods))


def _pending_since(earlier: FineTuneJobStatus, now: datetime) -> datetime:
    """Since when pods are awaited; a job that did something else until now begins to wait."""
    since = (each.last_transition_time for each in earlier.conditions if each.type == "Reconciling")
    return next(since, now if earlier.conditions else datetime.min.replace(tzinfo=UTC))


def _had_other_pods(snapshot: Snapshot, child: ObservedJob, missing_since: datetime) -> bool:
    """Whether the Job has had pods that ended, also such as are gone: a Job without any lacks them from its start."""
    is_gone = child.start_time is not None and missing_since - child.start_time > 2 * NOTED_AFTER
    return is_gone or snapshot.restarts > 0 or any(pod.has_ended for pod in snapshot.pods)


def _refused(snapshot: Snapshot, child: ObservedJob) -> Diagnosis:
    """The words are in an Event of the Job, which the operator has no right to read."""
    job = snapshot.job
    made = max(child.num_pods, sum(not pod.has_ended for pod in snapshot.pods))
    return Diagnosis(
        PODS_REFUSED,
        f"{made} of {child.nodes} pods could be made; `kubectl --namespace={job.namespace} describe job {job.name}` "
        "says why: a quota, a LimitRange, a priority class, a service account or a policy refuses them",
    )


def _not_stopping(namespace: str, pod: ObservedPod) -> Diagnosis:
    """Kubernetes itself waits for ever: the pod is the Job's until it has ended, also where it is deleted by force."""
    on = f"kubectl --namespace={namespace}"
    release = f"{on} patch pod {pod.name} {_WITHOUT_FINALIZERS}"
    return Diagnosis(
        "PodNotStopping",
        f"{pod.name} was told to stop, and its node {pod.node} does not say that it did; none takes its place "
        "meanwhile, as two trainers would spoil each other's checkpoints. If that machine is off, or the pod is gone "
        f"from it: `{release} && {on} delete pod {pod.name} --force`",
    )


def _held_by_finalizer(snapshot: Snapshot, child: ObservedJob) -> Diagnosis:
    """A finalizer is another's: what sets it is to do something first, which is not known here."""
    job, names = snapshot.job, " and ".join(child.held_by)[:_TOLD]
    release = f"kubectl --namespace={job.namespace} patch job {job.name} {_WITHOUT_FINALIZERS}"
    return Diagnosis(
        HELD_BY_FINALIZER,
        f"the Job {job.name} is deleted, and its finalizer {names} keeps it: what has set that has to take it away, "
        f"and until then no new one can be made. If nothing does any more: `{release}`",
    )


def _held(pod: ObservedPod) -> Diagnosis:
    cause = None if pod.exit_code == ExitCode.COMPLETE else why_pod_failed(pod)
    ending = f"has ended ({cause.reason}: {cause.message[:_TOLD]})" if cause else "is done"
    others = " and ".join(pod.others_running)[:_TOLD]
    return Diagnosis(
        HELD_BY_SIDECAR,
        f"the trainer in {pod.name} {ending}, but the job cannot end while {others} runs "
        "in the same pod: have it added as a native sidecar, or not at all (for Istio the label "
        '`sidecar.istio.io/inject: "false"` in spec.pod.labels)',
    )
