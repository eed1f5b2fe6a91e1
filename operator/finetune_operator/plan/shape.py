"""The shape of a Job: what of the spec is fixed when the Job is made, and takes a new Job to change."""

from __future__ import annotations

import hashlib
import json

from finetune_api.v1alpha1 import FineTuneJobSpec

_FIELDS = {"resources", "pod", "queue_name"}


def shape_of(spec: FineTuneJobSpec) -> str:
    """A digest of those fields. Defaults are left out: a field that a later release adds changes no running Job."""
    given = spec.model_dump(mode="json", by_alias=True, include=_FIELDS, exclude_defaults=True)
    text = json.dumps(given, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
