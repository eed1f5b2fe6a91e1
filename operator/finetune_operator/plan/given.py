"""Reads a spec as it is stored, also one that a newer CRD let in: this version may know less than the API server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetune_api.manifest import parse_spec
from finetune_api.newer import unknown_places, without
from finetune_api.problems import UNKNOWN_FIELD, Problem, problems_of
from finetune_api.v1alpha1 import FineTuneJobSpec

_UPGRADE = "upgrade the operator, or give the cluster the CRD of its version"


@dataclass(frozen=True, slots=True)
class GivenSpec:
    """A spec, and what of it is not understood."""

    spec: FineTuneJobSpec | None
    """What is known of it; None where that is no spec."""
    unknown: tuple[Problem, ...] = ()
    """Fields that this version does not know. The API server keeps no field that its CRD does not have."""
    invalid: tuple[Problem, ...] = ()
    """Values that this version does not take."""

    def reservation(self) -> str:
        """What to say of a Job that goes on though not all of its spec is understood; empty where it is."""
        if not (problems := (*self.unknown, *self.invalid)):
            return ""
        fields = ", ".join(problem.field for problem in problems)
        return f"this version of the operator does not understand {fields} and leaves the Job as it is; {_UPGRADE}"


def read_spec(content: Mapping[str, Any]) -> GivenSpec:
    """The spec, without the fields that are not known here."""
    try:
        return GivenSpec(parse_spec(content))
    except ValidationError as error:
        places = unknown_places(error)
        if not places:
            return GivenSpec(None, invalid=tuple(problems_of(error)))
        unknown = tuple(_unknown(problem) for problem in problems_of(error) if problem.message == UNKNOWN_FIELD)
    rest = read_spec(without({"spec": content}, places)["spec"])
    return GivenSpec(rest.spec, (*unknown, *rest.unknown), rest.invalid)


def _unknown(problem: Problem) -> Problem:
    return Problem(problem.field, "not known to this version of the operator", _UPGRADE)
