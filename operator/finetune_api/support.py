"""What this release cannot run yet, refused by name: a field that is accepted is a field that is honoured."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.problems import Problem
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.v1alpha1.job import Task
from finetune_api.v1alpha1.strategy import AdapterType

_NOT_YET = "part of the contract, but not run by this release yet"

UNSUPPORTED: tuple[tuple[str, Callable[[FineTuneJobSpec], bool], str], ...] = (
    ("task", lambda spec: spec.task != Task.TEXT_CLASSIFICATION, "use TextClassification"),
    ("strategy.distillation", lambda spec: spec.strategy.distillation is not None, "use full or adapter"),
    ("strategy.promptTuning", lambda spec: spec.strategy.prompt_tuning is not None, "use full or adapter"),
    ("strategy.auto", lambda spec: spec.strategy.auto is not None, "use full or adapter"),
    (
        "strategy.adapter.type",
        lambda spec: spec.strategy.adapter is not None
        and spec.strategy.adapter.type not in (AdapterType.BOTTLENECK, AdapterType.LORA),
        "use Bottleneck or LoRA",
    ),
    (
        "strategy.adapter.stackOn",
        lambda spec: spec.strategy.adapter is not None and bool(spec.strategy.adapter.stack_on),
        "leave it out",
    ),
    (
        "strategy.full.gradualUnfreezing",
        lambda spec: spec.strategy.full is not None and spec.strategy.full.gradual_unfreezing is not None,
        "use frozenLayers",
    ),
    (
        "strategy.full.l2ToStart",
        lambda spec: spec.strategy.full is not None and spec.strategy.full.l2_to_start > 0,
        "leave it out",
    ),
    ("data.unlabeled", lambda spec: spec.data.unlabeled is not None, "leave it out"),
    ("data.replay", lambda spec: spec.data.replay is not None, "leave it out"),
    ("evaluation.retention", lambda spec: spec.evaluation.retention is not None, "leave it out"),
    ("resources.nodes", lambda spec: spec.resources.nodes > 1, "use 1"),
    ("resources.gpusPerNode", lambda spec: spec.resources.gpus_per_node > 1, "use 0 or 1"),
    ("model.uri", lambda spec: spec.model.uri.startswith(("s3://", "https://")), "use hf://, pvc:// or file://"),
    ("data.train.uri", lambda spec: spec.data.train.uri.startswith(("s3://", "https://")),
     "use hf://datasets/, pvc:// or file://"),
    ("data.evaluation.uri",
     lambda spec: spec.data.evaluation is not None and spec.data.evaluation.uri.startswith(("s3://", "https://")),
     "use hf://datasets/, pvc:// or file://"),
    ("output.uri", lambda spec: spec.output.uri.startswith("s3://"), "use pvc:// or file://"),
)  # fmt: skip


def unsupported(spec: FineTuneJobSpec) -> list[Problem]:
    """The given fields that this release cannot honour."""
    return [Problem(f"spec.{field}", _NOT_YET, hint) for field, given, hint in UNSUPPORTED if given(spec)]
