"""What this release cannot run yet, refused by name: a field that is accepted is a field that is honoured."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.problems import Problem
from finetune_api.v1alpha1 import FineTuneJobSpec

_NOT_YET = "part of the contract, but not run by this release yet"
_COMPARED = "use 1, or set relation.distance and relation.angle to 0: they compare all rows of a batch in one process"

UNSUPPORTED: tuple[tuple[str, Callable[[FineTuneJobSpec], bool], str], ...] = (
    (
        "strategy.adapter.stackOn",
        lambda spec: spec.strategy.adapter is not None
        and any(source.uri.startswith(("s3://", "https://")) for source in spec.strategy.adapter.stack_on),
        "use hf://, pvc:// or file://",
    ),
    (
        "strategy.distillation.teacher.uri",
        lambda spec: spec.strategy.distillation is not None
        and spec.strategy.distillation.teacher.uri.startswith(("s3://", "https://")),
        "use hf://, pvc:// or file://",
    ),
    ("resources.nodes", lambda spec: spec.resources.nodes > 1 and _compares_samples(spec), _COMPARED),
    ("resources.gpusPerNode", lambda spec: spec.resources.gpus_per_node > 1 and _compares_samples(spec), _COMPARED),
    ("model.uri", lambda spec: spec.model.uri.startswith(("s3://", "https://")), "use hf://, pvc:// or file://"),
    ("data.train.uri", lambda spec: spec.data.train.uri.startswith(("s3://", "https://")),
     "use hf://datasets/, pvc:// or file://"),
    ("data.evaluation.uri",
     lambda spec: spec.data.evaluation is not None and spec.data.evaluation.uri.startswith(("s3://", "https://")),
     "use hf://datasets/, pvc:// or file://"),
    ("data.replay.source.uri",
     lambda spec: spec.data.replay is not None and spec.data.replay.source.uri.startswith(("s3://", "https://")),
     "use hf://datasets/, pvc:// or file://"),
    ("data.unlabeled.uri",
     lambda spec: spec.data.unlabeled is not None and spec.data.unlabeled.uri.startswith(("s3://", "https://")),
     "use hf://datasets/, pvc:// or file://"),
    ("evaluation.retention.data.uri",
     lambda spec: spec.evaluation.retention is not None
     and spec.evaluation.retention.data.uri.startswith(("s3://", "https://")),
     "use hf://datasets/, pvc:// or file://"),
    ("output.uri", lambda spec: spec.output.uri.startswith("s3://"), "use pvc:// or file://"),
)  # fmt: skip


def _compares_samples(spec: FineTuneJobSpec) -> bool:
    return spec.strategy.distillation is not None and spec.strategy.distillation.compares_samples()


def unsupported(spec: FineTuneJobSpec) -> list[Problem]:
    """The given fields that this release cannot honour."""
    return [Problem(f"spec.{field}", _NOT_YET, hint) for field, given, hint in UNSUPPORTED if given(spec)]
