"""What this release cannot run yet, refused by name: a field that is accepted is a field that is honoured."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.problems import Problem
from finetune_api.v1alpha1 import FineTuneJobSpec

_NOT_YET = "part of the contract, but not run by this release yet"
_COMPARED = "use 1, or set relation.distance and relation.angle to 0: they compare all rows of a batch in one process"

UNSUPPORTED: tuple[tuple[str, Callable[[FineTuneJobSpec], bool], str], ...] = (
    ("resources.nodes", lambda spec: spec.resources.nodes > 1 and _compares_samples(spec), _COMPARED),
    ("resources.gpusPerNode", lambda spec: spec.resources.gpus_per_node > 1 and _compares_samples(spec), _COMPARED),
)


def _compares_samples(spec: FineTuneJobSpec) -> bool:
    return spec.strategy.distillation is not None and spec.strategy.distillation.compares_samples()


def unsupported(spec: FineTuneJobSpec) -> list[Problem]:
    """The given fields that this release cannot honour."""
    return [Problem(f"spec.{field}", _NOT_YET, hint) for field, given, hint in UNSUPPORTED if given(spec)]
