"""The audit log tells a missing right from a refusal by admission, and which pods break the audited standard."""

from __future__ import annotations

import pytest

from .audit import Admission, Write
from .client import Client, Object, RequestError
from .cluster import Cluster, Namespace
from .operator_process import service_account_token

pytest_plugins = [f"{__package__}.plugin"]
pytestmark = pytest.mark.integration

CONTAINER: Object = {"name": "main", "image": "none"}
CLOSED: Object = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(name: str, container: Object) -> Object:
    return {"metadata": {"name": name}, "spec": {"containers": [container]}}


def test_pod_that_breaks_the_standard_is_told_with_what_is_wrong_and_another_without(
    cluster: Cluster, namespace: Namespace
) -> None:
    cluster.client.create(namespace.path("pods"), pod("closed", {**CONTAINER, "securityContext": CLOSED}))
    with pytest.raises(RequestError, match="violates PodSecurity"):
        cluster.client.create(namespace.path("pods"), pod("open", CONTAINER))
    closed, opened = (each for each in cluster.server.audit.admissions() if each.namespace == namespace.name)
    assert closed == Admission(namespace.name, "pods", "")
    assert "runAsNonRoot != true" in opened.violation


def test_refusal_by_rbac_is_unauthorized_and_one_by_admission_is_not(cluster: Cluster, namespace: Namespace) -> None:
    made = cluster.server.kubectl(
        f"--namespace={namespace.name}", "create", "rolebinding", "edits", "--clusterrole=edit",
        f"--serviceaccount={namespace.name}:default",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    account = Client(cluster.server, service_account_token(cluster.server, account="default", namespace=namespace.name))
    with pytest.raises(RequestError, match="violates PodSecurity"):
        account.create(namespace.path("pods"), pod("open", CONTAINER))
    with pytest.raises(RequestError, match="forbidden"):
        account.create("/api/v1/namespaces", {"metadata": {"name": "mine"}})

    def asked(resource: str) -> Write:
        user = f"system:serviceaccount:{namespace.name}:default"
        [found] = [each for each in cluster.server.audit.requests() if (each.user, each.resource) == (user, resource)]
        return found

    assert (asked("pods").code, asked("pods").authorized) == (403, True)
    assert (asked("namespaces").code, asked("namespaces").authorized) == (403, False)
