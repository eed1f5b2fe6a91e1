"""Reads a status as it is stored, also one that another version wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from finetune_api.base import Contract
from finetune_api.v1alpha1.status import Condition, FineTuneJobStatus
from finetune_operator.plan.status import CONDITION_TYPES

_CONDITION_FIELDS = tuple(str(field.alias) for field in Condition.model_fields.values())
_UNREADABLE = {"lastTransitionTime": "1970-01-01T00:00:00Z", "reason": "Unreadable", "message": ""}


def read_status(status: Mapping[str, Any]) -> FineTuneJobStatus:
    """The status, or what can be read of it."""
    try:
        return FineTuneJobStatus.model_validate(status)
    except ValidationError:
        return _salvaged(status)


def _salvaged(status: Mapping[str, Any]) -> FineTuneJobStatus:
    """Each field that can be read alone; the end of a job above all, or one that has ended would start again."""
    fields = {key: value for key, value in status.items() if _is_valid(FineTuneJobStatus, {key: value})}
    if "conditions" not in fields and isinstance(entries := status.get("conditions"), list):
        readable = [found for entry in entries if isinstance(entry, dict) and (found := _salvaged_condition(entry))]
        fields["conditions"] = list({entry["type"]: entry for entry in readable}.values())
    return FineTuneJobStatus.model_validate(fields)


def _salvaged_condition(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The condition, or its type and status alone: those are the latch."""
    known = {field: entry[field] for field in _CONDITION_FIELDS if field in entry}
    bare = {**_UNREADABLE, "type": known.get("type"), "status": known.get("status")}
    if known.get("type") not in CONDITION_TYPES:
        return None
    return next((found for found in (known, bare) if _is_valid(Condition, found)), None)


def _is_valid(model: type[Contract], value: Mapping[str, Any]) -> bool:
    try:
        model.model_validate(value)
    except ValidationError:
        return False
    return True
