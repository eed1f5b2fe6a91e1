"""Turns the class numbers of the `datasets` library's columns into their names, which alone say what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

ClassNames = dict[str, list[str]]
"""The names of each column that holds class numbers, one or a list of them a row."""


def class_names(features: Mapping[str, Any]) -> ClassNames:
    """Of the features as `Features.to_dict` writes them."""
    names = {}
    for column, feature in features.items():
        while isinstance(feature, Mapping) and "feature" in feature:  # a list, or a list of lists
            feature = feature["feature"]
        if isinstance(feature, list) and len(feature) == 1:  # a list, as earlier versions write it
            feature = feature[0]
        if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            names[column] = [str(name) for name in feature["names"]]
    return names


def class_names_in(metadata: Mapping[bytes, bytes] | None) -> ClassNames:
    """Of the metadata that the library leaves in a parquet file; none where it has not written the file."""
    try:
        return class_names(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def with_names(values: dict[str, Any], names: ClassNames) -> dict[str, Any]:
    """A row with names in the place of class numbers; None for a number without a name (-1 is no class)."""
    named = {column: _named(values[column], of_column) for column, of_column in names.items() if column in values}
    return {**values, **named}


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
