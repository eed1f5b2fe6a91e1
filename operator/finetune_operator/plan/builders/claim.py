"""Builds the claim for a job's output."""

from __future__ import annotations

from typing import Any

from finetune_api.run import Run
from finetune_operator.plan import names


def build_claim(run: Run) -> dict[str, Any] | None:
    """The PersistentVolumeClaim, or None when none is asked for. It has no owner: results outlive their job."""
    output = run.spec.output
    claim = names.claim_of(output.uri)
    if output.create_claim is None or claim is None:
        return None
    # Once is for one node. All of a job's mount the claim: the first writes, and the others resume from what it wrote.
    mode = "ReadWriteOnce" if run.spec.resources.nodes == 1 else "ReadWriteMany"
    spec: dict[str, Any] = {
        "accessModes": [mode],
        "resources": {"requests": {"storage": output.create_claim.size}},
    }
    if output.create_claim.storage_class_name:
        spec["storageClassName"] = output.create_claim.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": claim,
            "namespace": run.namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
        },
        "spec": spec,
    }
