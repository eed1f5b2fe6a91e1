"""Builds the batch/v1 Job: Indexed, one pod a node, with a failure policy made from the trainer's exit codes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_operator.plan import names
from finetune_operator.plan.builders.pod import build_pod_template
from finetune_operator.plan.settings import PodSettings
from finetune_operator.plan.shape import shape_of


def build_job(run: Run, settings: PodSettings) -> dict[str, Any]:
    """The Job. Under Kueue it is created suspended, and Kueue alone starts it."""
    spec = run.spec
    labels = names.labels(run.name)
    if spec.queue_name:
        labels |= {names.KUEUE_QUEUE_LABEL: spec.queue_name}
    job_spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": spec.resources.nodes,
        "parallelism": spec.resources.nodes,
        "backoffLimit": spec.backoff_limit,
        # A replacement starts only when the old pod is gone: two trainers must never share checkpoints.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        "suspend": spec.suspend or spec.queue_name is not None,
        "template": build_pod_template(run, settings),
    }
    if spec.resources.nodes > 1:
        # The first has the result. A node that is lost after that must not wait for peers that never come again.
        job_spec["successPolicy"] = {"rules": [{"succeededIndexes": names.FIRST_INDEX}]}
    if spec.active_deadline_seconds is not None:
        job_spec["activeDeadlineSeconds"] = spec.active_deadline_seconds
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": run.name,
            "namespace": run.namespace,
            "labels": labels,
            "annotations": {names.SHAPE_ANNOTATION: shape_of(spec)},
            "ownerReferences": [names.owner_reference(run.name, run.uid)],
        },
        "spec": job_spec,
    }


def _failure_rules() -> list[dict[str, Any]]:
    """Disruptions and graceful stops do not count, permanent failures end the job, all else counts as a try.

    Nor does a node that lost its peers: the one that failed counts, and not once more for each that stopped with it.
    """
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": _exit_codes(code for code in ExitCode if code.permanent)},
        {"action": "Ignore", "onExitCodes": _exit_codes(code for code in ExitCode if code.uncounted)},
    ]


def _exit_codes(codes: Iterable[ExitCode]) -> dict[str, Any]:
    return {"containerName": names.CONTAINER, "operator": "In", "values": sorted(map(int, codes))}
