"""The same task in the style of kopf's tutorial, as a baseline: a handler for `create`, and the synchronous client.

Run by `operator_scale.py create`, by kopf's own command: kopf run --standalone --all-namespaces tutorial_operator.py
"""

from __future__ import annotations

import os
from typing import Any

import kopf
import kubernetes


@kopf.on.startup()
def load_config(**_: Any) -> None:
    """Take the kubeconfig that the environment names."""
    kubernetes.config.load_kube_config(os.environ["KUBECONFIG"])


@kopf.on.create("finetune-operator.io", "v1alpha1", "finetunejobs")
def create_job(spec: Any, name: str, namespace: str, patch: Any, **_: Any) -> None:
    """Create the Job and say so in the status."""
    container = {
        "name": "trainer",
        "image": "trainer:test",
        "command": ["python", "-m", "finetune_trainer"],
        "env": [{"name": "MODEL", "value": spec["model"]["uri"]}],
        "resources": {"requests": {"cpu": str(spec["resources"]["cpu"]), "memory": spec["resources"]["memory"]}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], "securityContext": security}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"template": template}}
    kopf.adopt(job)
    kubernetes.client.BatchV1Api().create_namespaced_job(namespace, job)
    patch.status["phase"] = "Pending"
