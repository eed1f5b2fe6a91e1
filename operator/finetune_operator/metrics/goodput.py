"""Where the time of jobs goes: each second from the first status to the end is goodput, or badput of one cause.

A phase is counted when it ends, from what its status and its pods have stored: so a restart of the operator neither
loses a second nor counts it twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum

from finetune_api.v1alpha1.status import FineTuneJobStatus, Phase
from finetune_operator.plan.diagnosis import last_word
from finetune_operator.plan.snapshot import ObservedPod, Snapshot


class Cause(StrEnum):
    """Why a job did not make progress that was kept."""

    QUEUED = "Queued"
    """It waited for admission by its queue."""
    SCHEDULING = "Scheduling"
    """Before it first ran: until its pods had nodes."""
    STARTING = "Starting"
    """Before it first ran: from node to running container, with pulling the image and mounting volumes."""
    RECOVERY = "Recovery"
    """Once it had run: from losing its pods until all ran again."""
    LOST_WORK = "LostWork"
    """It ran, but its pods were lost, and with them what came after the last checkpoint."""
    FAILED = "Failed"
    """It ran, and ended as a failure."""
    SUSPENDED = "Suspended"
    """It was suspended."""


Share = tuple[Cause | None, float]
"""A cause and its seconds; None is goodput."""


def shares(snapshot: Snapshot, earlier: FineTuneJobStatus, later: FineTuneJobStatus) -> list[Share]:
    """How the phase that ends between two statuses is to be counted; nothing while it goes on."""
    since, until = _last_transition(earlier), later.completion_time or _last_transition(later)
    if earlier.phase in (None, later.phase, Phase.COMPLETE, Phase.FAILED) or since is None or until is None:
        return []
    cuts = list(_cuts(snapshot, earlier, later, until))
    found: list[Share] = []
    for cause, end in cuts:
        end = min(max(since, end), until)
        found.append((cause, (end - since).total_seconds()))
        since = end
    return [(cause, seconds) for cause, seconds in found if seconds > 0]


def _cuts(
    snapshot: Snapshot, earlier: FineTuneJobStatus, later: FineTuneJobStatus, until: datetime
) -> Iterator[tuple[Cause | None, datetime]]:
    """What the phase was, piece by piece, and until when; the last piece goes to the end."""
    match earlier.phase:
        case Phase.QUEUED:
            yield Cause.QUEUED, until
        case Phase.SUSPENDED:
            yield Cause.SUSPENDED, until
        case Phase.PENDING if earlier.start_time is not None:
            yield Cause.RECOVERY, until
        case Phase.PENDING:
            yield Cause.SCHEDULING, _scheduled(snapshot.pods, until)
            yield Cause.STARTING, until
        case _ if later.phase == Phase.FAILED:
            yield Cause.FAILED, until
        case _ if later.phase == Phase.PENDING:
            kept = _last_checkpoint(snapshot, earlier)
            if kept is not None:
                yield None, kept
            yield Cause.LOST_WORK, until
        case _:  # complete; or told to stop, which saves a checkpoint
            yield None, until


def _last_transition(status: FineTuneJobStatus) -> datetime | None:
    """Since when the phase holds: every change of it is one of a condition."""
    return max((condition.last_transition_time for condition in status.conditions), default=None)


def _scheduled(pods: Sequence[ObservedPod], until: datetime) -> datetime:
    """When the last pod got its node."""
    moments = [pod.scheduled_at for pod in pods if not pod.being_deleted]
    return max((moment or until for moment in moments), default=until)


def _last_checkpoint(snapshot: Snapshot, earlier: FineTuneJobStatus) -> datetime | None:
    """The newest checkpoint that anyone tells of: the pods' last words, the newest report, the status."""
    word = last_word(snapshot.pods)
    told = (word.progress if word else None, snapshot.progress, earlier.progress)
    return max((p.last_checkpoint.time for p in told if p and p.last_checkpoint), default=None)
