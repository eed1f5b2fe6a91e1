"""The merge patch (RFC 7386) that turns one JSON object into another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge_patch(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """What differs; what is no longer there is null, or it would stay for ever."""
    patch: dict[str, Any] = dict.fromkeys(earlier.keys() - later.keys())
    for key, value in later.items():
        known = earlier.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            if inner := merge_patch(known, value):
                patch[key] = inner
        elif key not in earlier or value != known:
            patch[key] = value
    return patch
