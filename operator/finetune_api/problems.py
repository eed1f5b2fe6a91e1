"""Turns validation errors into sentences: the field, the value, what is allowed, what to do."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.base import Contract, models_in
from finetune_api.v1alpha1 import FineTuneJob

UNKNOWN_FIELD = "unknown field"
_NAME_NEEDED = "only `kubectl create` makes a name of generateName; without a cluster a run goes on under its name"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a manifest."""

    field: str
    """JSON path, such as `spec.training.learningRate`; empty for the manifest as a whole."""
    message: str
    """What is wrong, with the value where there is one."""
    hint: str = ""
    """What to do."""

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}" if self.field else self.message
        return printable(f"{text} ({self.hint})" if self.hint else text)


def printable(text: str) -> str:
    """A text for a terminal or a log: what would break the line or the screen is escaped."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def problems_of(error: ValidationError) -> list[Problem]:
    """The problems in a pydantic error over a FineTuneJob, in the manifest's own terms."""
    return [_problem(details) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails) -> Problem:
    location = details["loc"]
    field = _json_path(location)
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return Problem(field, UNKNOWN_FIELD, _nearest_field(location))
        case "missing":
            is_to_be_generated = field == "metadata.name" and "generateName" in value
            return Problem(field, "required, but absent", _NAME_NEEDED if is_to_be_generated else "")
        case "rule":
            return Problem(field + context["field"] if field else context["field"].lstrip("."), context["message"])
        case "enum" | "literal_error":
            allowed = _allowed_values(context["expected"])
            hint = nearest(value, allowed) if len(allowed) > 1 else ""
            return Problem(field, f"{_shown(value)} is not allowed; use {' or '.join(allowed)}", hint)
        case "string_type" if isinstance(value, int | float) and not isinstance(value, bool):
            return Problem(field, f"{_shown(value)} is a number; write it as a string", f'"{value}"')
        case "string_pattern_mismatch":
            return Problem(field, f"{_shown(value)} does not match {context['pattern']}")
        case "string_too_short" | "string_too_long" | "too_short" | "too_long":
            return Problem(field, f"{_shown(value)} {_length_wanted(kind, context)}")
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Problem(field, f"{_shown(value)} {message}")


def _length_wanted(kind: str, context: dict[str, Any]) -> str:
    unit = "character" if kind.startswith("string") else "item"
    limit = f"at least {context['min_length']}" if kind.endswith("short") else f"at most {context['max_length']}"
    return f"should have {limit} {unit}{'' if limit.endswith(' 1') else 's'}"


def _json_path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if part == "[key]":  # pydantic's mark for a map's key that is wrong itself
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _allowed_values(expected: str) -> list[str]:
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(",") if word.strip()]


def nearest(value: Any, allowed: list[str]) -> str:
    """The question whether the allowed word most like the value was meant, or nothing."""
    folded = {name.lower(): name for name in allowed}
    near = difflib.get_close_matches(str(value).lower(), folded, n=1)
    return f"did you mean {folded[near[0]]}?" if near else ""


def _nearest_field(location: tuple[int | str, ...]) -> str:
    """The known field that was most likely meant.

    The same word spelt otherwise among the siblings, then the same word elsewhere, then a similar one here, then one
    elsewhere. Of several elsewhere, the one that shares most of the path.
    """
    *parents, unknown = location
    parent = _json_path(tuple(part for part in parents if not isinstance(part, int)))
    known = list(_known_fields(FineTuneJob))
    siblings = {_folded(path): _name(path) for path in known if path.rpartition(".")[0] == parent}
    elsewhere: dict[str, str] = {}
    for path in sorted(known, key=lambda path: _shared_parts(path, parent), reverse=True):
        if not path.startswith("status"):
            elsewhere.setdefault(_folded(path), path)
    word = _folded(str(unknown))
    for names, likeness in ((siblings, 1.0), (elsewhere, 1.0), (siblings, 0.6), (elsewhere, 0.85)):
        if near := difflib.get_close_matches(word, names, n=1, cutoff=likeness):
            return f"did you mean {names[near[0]]}?"
    return f"known fields here: {', '.join(siblings.values())}" if siblings else ""


def _shared_parts(path: str, other: str) -> int:
    pairs = zip(path.split("."), other.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _name(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _folded(path: str) -> str:
    """A field's name without what people spell differently: batch_size is batchSize."""
    return _name(path).lower().replace("_", "").replace("-", "")


def _known_fields(model: type[Contract], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        for nested in models_in(field.annotation):
            yield from _known_fields(nested, f"{path}.")
