"""What happens to a job from outside: suspended, changed, deleted, expired; and what is left of it."""

from __future__ import annotations

import pytest

from finetune_api.manifest import parse_spec
from finetune_operator.plan.builders.job import build_job
from finetune_operator.plan.builders.service import build_service
from finetune_operator.plan.run import make_run
from finetune_operator.plan.settings import PodSettings
from operator_jobs import events_of, job, run_to_completion
from testbed.client import Client, RequestError, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operator")]

CHILD_KINDS = (
    ("jobs", "/apis/batch/v1"),
    ("pods", "/api/v1"),
    ("services", "/api/v1"),
    ("configmaps", "/api/v1"),
    ("secrets", "/api/v1"),
    ("persistentvolumeclaims", "/api/v1"),
    ("finetunejobs", "/apis/finetune-operator.io/v1alpha1"),
)
OF_EVERY_NAMESPACE = {("configmaps", "kube-root-ca.crt")}


def suspend(cluster: Cluster, namespace: Namespace, name: str, held: bool) -> None:
    cluster.client.patch(namespace.job_path(name), {"spec": {"suspend": held}})


def everything_in(cluster: Cluster, namespace: Namespace) -> set[tuple[str, str]]:
    """Every object that a job could leave, by kind and name."""
    found = set()
    for plural, prefix in CHILD_KINDS:
        found |= {(plural, o["metadata"]["name"]) for o in cluster.client.items(namespace.path(plural, prefix=prefix))}
    return found - OF_EVERY_NAMESPACE


def test_job_suspended_mid_run_stops_its_pod_and_resumes_with_a_new_one(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "held")
    first = namespace.bound_pod("held")
    cluster.kubelet.run(first)
    namespace.until("held", "Running")
    suspend(cluster, namespace, "held", True)
    assert namespace.until("held", "Suspended")["reason"] == "SuspendedByUser"
    eventually(lambda: not namespace.pods("held"), "the pod is stopped")
    assert namespace.condition("held", "Running")["status"] == "False"
    assert namespace.child("held")["metadata"]["name"] == "held", "the Job stays"
    suspend(cluster, namespace, "held", False)
    second = namespace.bound_pod("held")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    run_to_completion(cluster, namespace, "held")
    assert namespace.condition("held", "Suspended")["status"] == "False"
    told = ["Running", "Suspended", "Resumed", "Running", "Complete"]
    eventually(lambda: events_of(namespace, "held") == told, "an Event a transition")


def test_job_created_suspended_has_no_pod_until_it_is_resumed(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(suspend=True), "later")
    namespace.until("later", "Suspended")
    assert namespace.child("later")["spec"]["suspend"] is True
    assert not namespace.pods("later")
    suspend(cluster, namespace, "later", False)
    run_to_completion(cluster, namespace, "later")


def test_deleted_job_leaves_nothing_but_the_output_claim(cluster: Cluster, namespace: Namespace) -> None:
    output = {"uri": "pvc://models/tuned", "createClaim": {"size": "1Gi"}}
    namespace.volume("models", make_claim=False)
    namespace.apply(job(output=output), "gone")
    cluster.kubelet.run(namespace.bound_pod("gone"))
    namespace.until("gone", "Running")
    claim = cluster.client.get(namespace.path("persistentvolumeclaims", "models"))
    assert claim["status"]["phase"] == "Bound"
    assert "ownerReferences" not in claim["metadata"]
    cluster.client.delete(namespace.job_path("gone"))
    left = {("persistentvolumeclaims", "models")}
    eventually(lambda: everything_in(cluster, namespace) == left, "only the claim is left", 60)


def test_claim_that_exists_is_used_as_it_is(cluster: Cluster, namespace: Namespace) -> None:
    namespace.volume("models")
    before = cluster.client.get(namespace.path("persistentvolumeclaims", "models"))["metadata"]["uid"]
    output = {"uri": "pvc://models/tuned", "createClaim": {"size": "5Gi"}}
    namespace.apply(job(output=output), "second")
    pod = namespace.bound_pod("second")
    claims = [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": "models"}]
    assert cluster.client.get(namespace.path("persistentvolumeclaims", "models"))["metadata"]["uid"] == before


def test_ended_job_is_deleted_after_its_time_to_live(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(ttlSecondsAfterFinished=2), "brief")
    run_to_completion(cluster, namespace, "brief")
    eventually(lambda: not everything_in(cluster, namespace), "nothing is left", 60)


def test_foreign_job_under_the_name_is_not_touched_and_the_condition_says_so(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    body = {"metadata": {"name": "taken"}, "spec": {"suspend": True, "template": FOREIGN_TEMPLATE}}
    foreign = cluster.client.create(namespace.child_path(), body)
    namespace.apply(job(), "taken")
    waits = namespace.until("taken", "Reconciling", "ChildNameTaken")
    assert "a Job named taken exists that is not this FineTuneJob's" in waits["message"]
    cluster.client.delete(namespace.job_path("taken"))
    eventually(lambda: cluster.client.find(namespace.job_path("taken")) is None, "the FineTuneJob is gone")
    found = namespace.child("taken")
    assert found["metadata"]["uid"] == foreign["metadata"]["uid"]
    assert found["metadata"]["generation"] == 1
    writes = [write for write in cluster.server.audit.writes(operator.credential) if write.namespace == namespace.name]
    assert {write.resource for write in writes} == {"finetunejobs/status"}


FOREIGN_TEMPLATE = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("task", {"task": "TextGeneration"}),
        ("training", {"training": {"batchSize": 8}}),
        ("strategy", {"strategy": {"full": {"frozenLayers": 1}}}),
        ("output", {"output": {"uri": "file:///elsewhere"}}),
    ],
)
def test_change_that_a_running_job_cannot_honour_is_refused_by_the_api_server(
    cluster: Cluster, namespace: Namespace, field: str, change: dict[str, object]
) -> None:
    namespace.apply(job(), "fixed")
    with pytest.raises(RequestError, match=f"{field} cannot be changed; create a new job") as refused:
        cluster.client.patch(namespace.job_path("fixed"), {"spec": change})
    assert refused.value.status == 422


def test_changes_that_are_honoured_reach_the_job(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "moving")
    namespace.bound_pod("moving")
    changed = cluster.client.patch(namespace.job_path("moving"), {"spec": {"ttlSecondsAfterFinished": 600}})
    generation = changed["metadata"]["generation"]
    observed = lambda: namespace.job("moving")["status"]["observedGeneration"] == generation  # noqa: E731
    eventually(observed, "the new generation is observed")


def test_nodes_of_a_job_find_each_other_by_the_headless_service(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    """By what the builders make, sent with the operator's own rights: this release starts no job on several nodes."""
    owner = namespace.apply(job(resources={"gpusPerNode": 0, "nodes": 2}), "wide")
    namespace.until("wide", "Failed", "SpecInvalid")
    run = make_run(namespace.name, "wide", owner["metadata"]["uid"], parse_spec(owner["spec"]))
    service = build_service(run)
    assert service is not None
    as_operator = Client(cluster.server, operator.token)
    as_operator.create(namespace.path("services"), service)
    as_operator.create(namespace.child_path(), build_job(run, PodSettings(trainer_image="trainer:test")))
    eventually(lambda: len(namespace.pods("wide")) == 2, "a pod for each node")
    pods = namespace.pods("wide")
    assert {pod["spec"]["subdomain"] for pod in pods} == {"wide-nodes"}
    assert {pod["spec"]["hostname"] for pod in pods} == {"wide-0", "wide-1"}
    for number, pod in enumerate(pods):
        cluster.kubelet.run(pod, address=f"10.0.0.{number + 1}")
    eventually(lambda: endpoints(cluster, namespace) == {"wide-0", "wide-1"}, "both pods are behind the Service")


def endpoints(cluster: Cluster, namespace: Namespace) -> set[str]:
    """The host names that the namespace's Services lead to."""
    slices = cluster.client.items(namespace.path("endpointslices", prefix="/apis/discovery.k8s.io/v1"))
    return {endpoint.get("hostname", "") for found in slices for endpoint in found["endpoints"] or ()}
