"""Derives the status of a job from what is observed: conditions first, the phase from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api.v1alpha1.status import FineTuneJobStatus, Phase, Progress
from finetune_operator.plan.conditions import Verdict, is_true, merge
from finetune_operator.plan.diagnosis import STARTING, Diagnosis, failed_for_good, last_word, why_failed, why_pending
from finetune_operator.plan.late import Late
from finetune_operator.plan.names import KUEUE_JOB_UID_LABEL, KUEUE_WORKLOADS, claim_of
from finetune_operator.plan.snapshot import ObservedJob, ObservedPod, Snapshot

PROGRESS_INTERVAL = timedelta(seconds=15)
"""Progress alone is written at most this often; every report reaches Prometheus at once."""

PROGRESS_WRITES_PER_SECOND = 20
"""Of all jobs together: such a write costs the API server ten milliseconds, and it has others to serve."""

PODS_RUNNING = "PodsRunning"

AUTO = "Auto"
"""The strategy's name where the trainer is to choose one."""

LAST_WORDS_GRACE = timedelta(seconds=10)
"""Jobs and pods are watched apart: a Job's end may be seen before the end of the pod that tells why."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Where a job stands, in one word and with the cause."""

    phase: Phase
    reason: str
    message: str
    pods_missing_since: datetime | None = None
    change_waits: bool = False


def observe_phase(snapshot: Snapshot, late: Late, now: datetime) -> Observation:
    """Where a job that has not ended stands, with what should have happened to it by now."""
    child, pods = snapshot.child, snapshot.pods
    if child is not None and child.has_ended and wait_for_last_words(snapshot, now) is None:
        return _observe_end(child, pods)
    if snapshot.job.is_to_stand_still and not _goes_on_all_the_same(snapshot):
        message = late.cause.message if late.cause else _suspended(snapshot.job.output_uri, pods)
        return Observation(Phase.SUSPENDED, "SuspendedByUser", message)
    seen = _observe_life(snapshot, late)
    if child is None or not snapshot.obstacle:
        return seen
    undone = "it could not be suspended" if snapshot.job.is_to_stand_still else "what else it needs could not be done"
    return replace(seen, message=f"{seen.message}; {undone} yet: {snapshot.obstacle}")


def _goes_on_all_the_same(snapshot: Snapshot) -> bool:
    """Whether its Job could not be suspended: what is tried first is done when the status is written."""
    child = snapshot.child
    return bool(snapshot.obstacle) and child is not None and not child.suspended and not child.being_deleted


def _observe_life(snapshot: Snapshot, late: Late) -> Observation:
    """Where a job stands that is not to stand still."""
    child, pods = snapshot.child, snapshot.pods
    if child is None:
        cause = _why_no_job(snapshot)
        return Observation(Phase.PENDING, cause.reason, cause.message)
    if child.queue and child.suspended and not (child.being_deleted and late.cause):
        return Observation(Phase.QUEUED, "WaitingForQueue", _waiting_in_queue(snapshot.job.namespace, child))
    # A node that is done counts: the job goes on running until all are. And when one has failed for good the job fails
    # in a moment: to call it pending until then would count its time as lost and to be made up for.
    at_work = {pod.index for pod in pods if pod.phase == "Succeeded" or (pod.phase == "Running" and pod.is_living)}
    if len(at_work) >= child.nodes or any(failed_for_good(pod) for pod in pods):
        cause = late.cause or Diagnosis(PODS_RUNNING, f"{child.nodes} of {child.nodes} pods run")
        return Observation(Phase.RUNNING, cause.reason, cause.message)
    cause = why_pending(pods, late.cause)
    return Observation(Phase.PENDING, cause.reason, cause.message, late.missing_since)


def wait_for_last_words(snapshot: Snapshot, now: datetime) -> timedelta | None:
    """How long to wait for the pods' last words after the Job's end; None when they are in, or no longer awaited.

    The end is a latch: what is not known when it is written is lost.
    """
    child, pods = snapshot.child, snapshot.pods
    if child is None or not child.has_ended or child.ended_at is None or child.failed_reason == "DeadlineExceeded":
        return None
    if _has_last_words(child, pods):
        return None
    remaining = child.ended_at + LAST_WORDS_GRACE - now
    return remaining if remaining > timedelta() else None


def ends_unheard(snapshot: Snapshot, now: datetime) -> bool:
    """Whether the end is about to be written though the watch of pods may be behind.

    It is when no last word was seen. Of a failure it may be even then: what was seen may be an earlier try.
    """
    child = snapshot.own_child
    if child is None or not child.has_ended:
        return False
    is_written = snapshot.job.status.get("completionTime") is not None
    if is_written or wait_for_last_words(snapshot, now) is not None:
        return False
    return not child.complete or not _has_last_words(child, snapshot.pods)


def make_status(
    snapshot: Snapshot, earlier: FineTuneJobStatus, seen: Observation, strategy: str | None, now: datetime
) -> FineTuneJobStatus:
    """The status to be written."""
    child = snapshot.own_child
    ended = seen.phase in (Phase.COMPLETE, Phase.FAILED)
    word = last_word(snapshot.pods) if ended else None
    ended_at = (child.ended_at if child else None) or now
    progress = (word.progress if word else None) or _coalesced(snapshot, earlier.progress, ended, now)
    progress = _with_choice(progress, earlier.progress)
    progress = _without_eta(progress) if ended else progress
    return FineTuneJobStatus(
        observed_generation=snapshot.job.generation,
        conditions=merge(earlier.conditions, verdicts(seen), snapshot.job.generation, now),
        phase=seen.phase,
        strategy=_strategy(strategy, progress),
        start_time=earlier.start_time or _started(snapshot, ended),
        completion_time=ended_at if ended else None,
        pods_missing_since=seen.pods_missing_since,
        change_waits=seen.change_waits or None,
        restarts=max(earlier.restarts, snapshot.restarts),
        progress=progress,
        result=word.result if word and seen.phase == Phase.COMPLETE else None,
    )


def _with_choice(progress: Progress | None, earlier: Progress | None) -> Progress | None:
    """A later try that failed before it came to the choice must not make the job forget it."""
    if progress is None or progress.choice or earlier is None or earlier.choice is None:
        return progress
    return progress.model_copy(update={"choice": earlier.choice})


def _without_eta(progress: Progress | None) -> Progress | None:
    """Nothing is to come of a job that has ended, however far it was expected to go."""
    if progress is None or not progress.eta_seconds:
        return progress
    return progress.model_copy(update={"eta_seconds": None})


def _strategy(given: str | None, progress: Progress | None) -> str | None:
    """The strategy's name. A pod's choice counts only where the job leaves it to the pod."""
    return progress.choice.strategy.value if given == AUTO and progress and progress.choice else given


def progress_interval(num_reporting: int) -> timedelta:
    """How long the progress of a job is held back after a write, by how many jobs report."""
    return max(PROGRESS_INTERVAL, timedelta(seconds=num_reporting / PROGRESS_WRITES_PER_SECOND))


def held_back(snapshot: Snapshot, earlier: Progress | None, now: datetime) -> timedelta | None:
    """How long the newest progress is not to be written yet; None when it may be, or says nothing new.

    `updated` is the time of the last write, told by our own clock: pods' clocks may be wrong.
    """
    newest, interval = snapshot.progress, progress_interval(snapshot.num_reporting)
    if newest is None or earlier is None or earlier.updated is None or _same(earlier, newest):
        return None
    since = now - earlier.updated
    return interval - since if timedelta() <= since < interval else None


def verdicts(seen: Observation) -> Mapping[str, Verdict]:
    """What each condition says in a phase.

    `Ready` is given only once there is nothing left to do, and `Reconciling` and `Stalled` only while they are true:
    kstatus reads a training of ten hours as current then, as it does a batch Job, and a `flux` wait does not hang.
    """
    said: dict[str, Verdict] = {}
    for type_, phase in _PHASE_OF_CONDITION.items():
        holds = seen.phase == phase
        said[type_] = Verdict(holds, seen.reason, seen.message if holds else "")
    if seen.phase in (Phase.PENDING, Phase.QUEUED):
        said["Reconciling"] = Verdict(True, seen.reason, seen.message)
        said["Running"] = Verdict(False, seen.reason, seen.message)
    if seen.phase == Phase.FAILED:
        said["Stalled"] = Verdict(True, seen.reason, seen.message)
        said["Ready"] = Verdict(False, seen.reason, seen.message)
    if seen.phase == Phase.COMPLETE:
        said["Ready"] = Verdict(True, seen.reason, seen.message)
    return said


def has_ended(status: FineTuneJobStatus) -> bool:
    """Whether a terminal condition is set; it is a latch."""
    return is_true(status.conditions, "Complete") or is_true(status.conditions, "Failed")


_PHASE_OF_CONDITION = {
    "Complete": Phase.COMPLETE,
    "Failed": Phase.FAILED,
    "Suspended": Phase.SUSPENDED,
    "Running": Phase.RUNNING,
    "Queued": Phase.QUEUED,
}
CONDITION_TYPES = (*_PHASE_OF_CONDITION, "Reconciling", "Stalled", "Ready")


def _coalesced(snapshot: Snapshot, earlier: Progress | None, ended: bool, now: datetime) -> Progress | None:
    """The newest progress, or the one already written when that was a moment ago or says the same."""
    newest = snapshot.progress
    if newest is None or (earlier is not None and _same(earlier, newest)):
        return earlier
    if not ended and held_back(snapshot, earlier, now) is not None:
        return earlier
    return newest.model_copy(update={"updated": now})


def _same(one: Progress, other: Progress) -> bool:
    """Whether two reports say the same, whenever they were made."""
    return one.model_copy(update={"updated": other.updated}) == other


def _has_last_words(child: ObservedJob, pods: Sequence[ObservedPod]) -> bool:
    """Whether the pods that decided the Job's end have ended here too; earlier ones that failed do not speak for it."""
    if child.complete:
        return any(pod.phase == "Succeeded" and pod.is_first for pod in pods)
    if any(pod.is_living for pod in pods) or not any(pod.has_ended for pod in pods):
        return False
    # One that is not known yet may be the one that failed first, and the others only lost it.
    return len({pod.index for pod in pods}) >= child.nodes


def _observe_end(child: ObservedJob, pods: Sequence[ObservedPod]) -> Observation:
    if child.complete:
        word = last_word(pods)
        return Observation(Phase.COMPLETE, "Complete", word.message if word else "the trainer ended with exit code 0")
    cause = why_failed(child, pods)
    return Observation(Phase.FAILED, cause.reason, cause.message)


def _suspended(output_uri: str, pods: Sequence[ObservedPod]) -> str:
    stopping = any(pod.phase == "Running" for pod in pods)
    if claim_of(output_uri):
        return "pods are saving a checkpoint and stopping" if stopping else "spec.suspend is true"
    state = "pods are stopping" if stopping else "spec.suspend is true"
    return f"{state}; training will start anew, because only a pvc:// output keeps checkpoints"


def _waiting_in_queue(namespace: str, child: ObservedJob) -> str:
    """Kueue says what it waits for in its Workload. That is not read here: there may be no Kueue, nor rights to it."""
    command = f"kubectl --namespace={namespace} describe {KUEUE_WORKLOADS} --selector={KUEUE_JOB_UID_LABEL}={child.uid}"
    return f"waiting for admission by queue {child.queue}; `{command}` says what for"


def _why_no_job(snapshot: Snapshot) -> Diagnosis:
    if snapshot.leftover:
        return Diagnosis("EarlierPodsStopping", f"waiting for {snapshot.leftover} of an earlier Job to stop")
    if snapshot.obstacle:
        return Diagnosis("ChildRefused", f"what the job needs could not be made yet: {snapshot.obstacle}")
    return STARTING


def _started(snapshot: Snapshot, ended: bool) -> datetime | None:
    """When the first trainer started; when none is left to tell, the Job has to."""
    started = [pod.started for pod in snapshot.pods if pod.started]
    if not started and ended and snapshot.own_child is not None:
        return snapshot.own_child.start_time
    return min(started, default=None)
