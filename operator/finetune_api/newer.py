"""Reads what a newer version wrote: the fields that are not known here are left out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

Place = tuple[int | str, ...]
Model = TypeVar("Model", bound=BaseModel)


def read_known(model: type[Model], text: str) -> Model:
    """What is known of an object in JSON. Raises ValidationError where anything else is wrong with it."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        places = unknown_places(error)
        if not places:
            raise
    return read_known(model, json.dumps(without(from_json(text), places)))


def unknown_places(error: ValidationError) -> list[Place]:
    """Where the fields are that an error calls unknown."""
    return list(dict.fromkeys(each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"))


def without(content: Any, places: Iterable[Place]) -> Any:
    """A copy of a JSON value without some fields."""
    known = json.loads(json.dumps(content))
    for *parents, name in places:
        value = known
        for part in parents:
            value = value[part]
        del value[name]
    return known
