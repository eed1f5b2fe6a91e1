"""What is kept of a FineTuneJob: what is asked for often as it is, the rest packed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from finetune_api.v1alpha1.status import Phase
from finetune_operator.metrics.figures import Figures, Times, figures_of
from finetune_operator.plan.snapshot import KubernetesObject, parse_time, version_of
from finetune_operator.plan.stored import read_status

_PHASES = {phase.value: phase for phase in Phase}
_NONE = Figures()


@dataclass(frozen=True, slots=True)
class Record:
    """A FineTuneJob. Spec and status are kept as JSON text: a tenth of the memory of dicts."""

    uid: str
    resource_version: int
    generation: int
    created: datetime
    being_deleted: bool
    spec: bytes
    status: bytes
    task: str
    strategy: str
    model: str
    phase: Phase
    figures: Figures
    """Of the status, for the metrics."""
    times: Times


def make_record(body: KubernetesObject) -> Record:
    """What is kept of a FineTuneJob's object."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    created = parse_time(metadata["creationTimestamp"])
    return Record(
        uid=metadata["uid"],
        resource_version=version_of(body),
        generation=metadata.get("generation", 1),
        created=created,
        being_deleted="deletionTimestamp" in metadata,
        spec=packed(spec),
        status=packed(status),
        task=sys.intern(_text(spec, "task")),
        strategy=sys.intern(_text(status, "strategy")),
        model=_text(spec.get("model"), "uri"),
        phase=_PHASES.get(_text(status, "phase"), Phase.PENDING),
        figures=_figures(status),
        times=Times(created, _time(status, "startTime"), _time(status, "completionTime")),
    )


def packed(value: KubernetesObject) -> bytes:
    """An object as JSON text, without blanks."""
    return json.dumps(value, separators=(",", ":")).encode()


def _time(status: KubernetesObject, field: str) -> datetime | None:
    """A time of a status; another version may have stored something else."""
    try:
        return parse_time(_text(status, field))
    except ValueError:
        return None


def _figures(status: KubernetesObject) -> Figures:
    """Read once and not at every scrape."""
    if not status.keys() & {"progress", "result"}:
        return _NONE
    found = read_status(status)
    return figures_of(found.progress, found.result)


def _text(value: object, field: str) -> str:
    """A field that is text; another version may have stored something else."""
    found = value.get(field) if isinstance(value, Mapping) else None
    return found if isinstance(found, str) else ""
