"""Builds the headless Service that the nodes of a job find each other by."""

from __future__ import annotations

from typing import Any

from finetune_api.run import Run
from finetune_operator.plan import names


def build_service(run: Run) -> dict[str, Any] | None:
    """The Service, or None for a job on one node."""
    if run.spec.resources.nodes == 1:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service_name(run.name, run.uid),
            "namespace": run.namespace,
            "labels": names.labels(run.name),
            "ownerReferences": [names.owner_reference(run.name, run.uid)],
        },
        "spec": {
            "clusterIP": "None",
            # Nodes meet before they are ready; that is what they meet for.
            "publishNotReadyAddresses": True,
            "selector": {names.JOB_NAME_LABEL: run.name},
            "ports": [{"name": "rendezvous", "port": names.RENDEZVOUS_PORT}],
        },
    }
