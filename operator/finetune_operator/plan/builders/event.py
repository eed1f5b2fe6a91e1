"""Builds a Kubernetes Event about a FineTuneJob."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from finetune_api.v1alpha1 import API_VERSION, KIND
from finetune_operator.plan import names
from finetune_operator.plan.events import NOTE_LIMIT, Event
from finetune_operator.plan.snapshot import ObservedFineTuneJob

_REASON_LIMIT = 128


def build_event(job: ObservedFineTuneJob, event: Event, instance: str, now: datetime) -> dict[str, Any]:
    """The Event, by a name that another one of the same moment does not have."""
    moment = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    digest = hashlib.sha256(f"{job.uid}/{event.reason}/{moment}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{job.name}.{digest}", "namespace": job.namespace},
        "eventTime": moment,
        "type": event.type,
        "reason": event.reason[:_REASON_LIMIT],
        "note": _cut(event.note, NOTE_LIMIT),
        "action": "Reconcile",
        "reportingController": names.REPORTING_CONTROLLER,
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": job.namespace,
            "name": job.name,
            "uid": job.uid,
        },
    }


def _cut(text: str, limit: int) -> str:
    """The beginning of a text, in whole characters: the API counts their bytes."""
    return text.encode()[:limit].decode(errors="ignore")
