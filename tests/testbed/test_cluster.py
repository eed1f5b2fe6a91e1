"""The cluster of the test bed makes pods of Jobs, binds them, and removes what has lost its owner."""

from __future__ import annotations

import pytest

from .client import eventually
from .cluster import Cluster, Namespace
from .kubelet import NODE

pytest_plugins = [f"{__package__}.plugin"]
pytestmark = pytest.mark.integration

TEMPLATE = {
    "metadata": {"labels": {"finetune-operator.io/job-name": "plain"}},
    "spec": {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "main",
                "image": "none",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}


def test_job_makes_a_pod_that_is_bound_runs_and_completes(cluster: Cluster, namespace: Namespace) -> None:
    body = {"metadata": {"name": "plain"}, "spec": {"template": TEMPLATE}}
    cluster.client.create(namespace.child_path(), body)
    pod = namespace.bound_pod("plain")
    assert pod["spec"]["nodeName"] == NODE
    cluster.kubelet.run(pod)
    cluster.kubelet.end(pod, 0)
    eventually(lambda: namespace.child("plain")["status"].get("succeeded") == 1, "the Job has succeeded")
    cluster.client.delete(namespace.child_path("plain") + "?propagationPolicy=Background")
    eventually(lambda: not namespace.pods("plain"), "the pod is collected")


def test_pod_outside_the_restricted_standard_is_refused(cluster: Cluster, namespace: Namespace) -> None:
    spec = {"containers": [{"name": "main", "image": "none"}]}
    with pytest.raises(RuntimeError, match="violates PodSecurity"):
        cluster.client.create(namespace.path("pods"), {"metadata": {"name": "wide"}, "spec": spec})
