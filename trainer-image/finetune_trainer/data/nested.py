"""Takes out of Arrow's structs what Arrow put in: every row has all fields that any row has, null where it had none."""

from __future__ import annotations

from typing import Any


def without_invented_nulls(values: dict[str, Any]) -> dict[str, Any]:
    """A row whose columns are as they were written; one that is null stays, and so do the items of lists."""
    return {column: _without_null_fields(value) for column, value in values.items()}


def _without_null_fields(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_null_fields(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_null_fields(part) for name, part in value.items() if part is not None}
    return value
