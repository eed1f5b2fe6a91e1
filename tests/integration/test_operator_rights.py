"""The operator's rights: what its RBAC grants it uses, every bit of it, and nothing it needs is missing."""

from __future__ import annotations

import functools

import pytest

from account_rights import NOT_REQUESTED, granted, is_allowed, missing, table, used
from operator_jobs import job, pod_token, report, report_path
from rights_in_use import delete_a_queued_job, judge_a_scrape, meet_a_foreign_job
from testbed.client import eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def everything(cluster: Cluster, operator: OperatorProcess) -> Namespace:
    """Every kind of thing that the operator does, at least once."""
    namespace = cluster.namespace()
    judge_a_scrape(namespace, functools.partial(OperatorProcess, cluster.server))
    expire(cluster, namespace, operator)
    namespace.apply(job(resources={"gpusPerNode": 0, "nodes": 2}, output={"uri": "pvc://models/wide"}), "wide")
    eventually(lambda: len(namespace.pods("wide")) == 2, "a pod for each node")
    namespace.apply(job(), "held")
    namespace.bound_pod("held")
    cluster.client.patch(namespace.job_path("held"), {"spec": {"suspend": True}})
    namespace.until("held", "Suspended")
    apply = lambda name, **spec: namespace.apply(job(**spec), name)  # noqa: E731
    delete_a_queued_job(namespace, apply)
    meet_a_foreign_job(namespace, apply)
    return namespace


def expire(cluster: Cluster, namespace: Namespace, operator: OperatorProcess) -> None:
    """A job with a claim of its own reports, ends, and is deleted after its time to live."""
    namespace.volume("models", make_claim=False)
    output = {"uri": "pvc://models/tuned", "createClaim": {"size": "1Gi"}}
    namespace.apply(job(output=output, ttlSecondsAfterFinished=1), "brief")
    pod = namespace.bound_pod("brief")
    cluster.kubelet.run(pod)
    namespace.until("brief", "Running")
    assert operator.report(report_path(namespace, "brief"), report(1), pod_token(cluster, namespace, pod)) == 200
    cluster.kubelet.end(pod, 0)
    gone = lambda: cluster.client.find(namespace.job_path("brief")) is None  # noqa: E731
    eventually(gone, "the job is deleted after its time to live")


@pytest.mark.security(7)
@pytest.mark.usefixtures("everything")
def test_every_right_is_used(cluster: Cluster) -> None:
    rights, uses = granted(cluster.client), used(cluster.server.audit)
    assert rights
    assert not rights - uses.keys() - NOT_REQUESTED, table(rights, uses)


@pytest.mark.security(7)
@pytest.mark.usefixtures("everything")
def test_no_right_was_missing(cluster: Cluster) -> None:
    """Nor in any other test: the cluster's fixture judges them all at its end."""
    assert not missing(cluster.server.audit, cluster.client)


@pytest.mark.security(6)
@pytest.mark.parametrize(
    ("verb", "resource", "group"),
    [
        ("get", "secrets", ""),
        ("create", "pods", ""),
        ("delete", "pods", ""),
        ("create", "pods/exec", ""),
        ("delete", "persistentvolumeclaims", ""),
        ("update", "finetunejobs", "finetune-operator.io"),
        ("create", "clusterrolebindings", "rbac.authorization.k8s.io"),
        ("create", "serviceaccounts/token", ""),
    ],
)
def test_what_it_does_not_need_it_may_not(cluster: Cluster, verb: str, resource: str, group: str) -> None:
    assert not is_allowed(cluster.client, verb, resource, group)
