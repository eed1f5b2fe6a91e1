"""What this release cannot run yet, refused by name: a field that is accepted is a field that is honoured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from finetune_api.problems import Problem
from finetune_api.v1alpha1 import FineTuneJobSpec

_NOT_YET = "part of the contract, but not run by this release yet"
_COMPARING = "over 1 with a distillation whose relation.distance or relation.angle is over 0"
_COMPARED = "use 1, or set relation.distance and relation.angle to 0: they compare all rows of a batch in one process"


class Unsupported(NamedTuple):
    """A field that is refused, and when."""

    field: str
    when: str
    is_given: Callable[[FineTuneJobSpec], bool]
    hint: str


UNSUPPORTED = (
    Unsupported(
        "resources.nodes", _COMPARING, lambda spec: spec.resources.nodes > 1 and _compares_samples(spec), _COMPARED
    ),
    Unsupported(
        "resources.gpusPerNode",
        _COMPARING,
        lambda spec: spec.resources.gpus_per_node > 1 and _compares_samples(spec),
        _COMPARED,
    ),
)


def _compares_samples(spec: FineTuneJobSpec) -> bool:
    return spec.strategy.distillation is not None and spec.strategy.distillation.compares_samples()


def unsupported(spec: FineTuneJobSpec) -> list[Problem]:
    """The given fields that this release cannot honour."""
    return [Problem(f"spec.{each.field}", _NOT_YET, each.hint) for each in UNSUPPORTED if each.is_given(spec)]
