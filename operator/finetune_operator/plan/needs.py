"""What the pods of a job need beside their Job, and what of it they may have lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_operator.plan.builders.claim import build_claim
from finetune_operator.plan.builders.service import build_service
from finetune_operator.plan.run import make_run
from finetune_operator.plan.snapshot import Snapshot

LATE_START = timedelta(minutes=1)
"""So long the scheduler may not have heard of a claim that is there."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What is to be made again when it is due."""

    body: dict[str, Any]
    due: datetime


def needs_of_pods(snapshot: Snapshot, spec: FineTuneJobSpec | None) -> tuple[dict[str, Any], ...]:
    """What the pods of a job mount and find each other by."""
    if spec is None:
        return ()
    run = make_run(snapshot.job.namespace, snapshot.job.name, snapshot.job.uid, spec)
    return tuple(body for body in (build_claim(run), build_service(run)) if body is not None)


def lost_needs(snapshot: Snapshot, spec: FineTuneJobSpec | None) -> Iterator[Lost]:
    """What pods that wait may lack: somebody may have deleted it, and the operator may not read whether it is there.

    Of a claim the scheduler tells. Of a Service nobody does, and one that is there is left as it is.
    """
    for body in needs_of_pods(snapshot, spec) if snapshot.pods else ():
        if body["kind"] == "Service":
            yield Lost(body, snapshot.pods[0].created + LATE_START)
        elif (since := _missed_since(snapshot, body["metadata"]["name"])) is not None:
            yield Lost(body, since + LATE_START)


def _missed_since(snapshot: Snapshot, claim: str) -> datetime | None:
    """Since when a pod that waits has been there, of those to which the scheduler names the claim as missing."""
    words = f'"{claim}" not found'
    missing = (pod for pod in snapshot.pods if pod.is_living and pod.scheduled is False)
    return min((pod.created for pod in missing if words in pod.scheduling_message), default=None)
