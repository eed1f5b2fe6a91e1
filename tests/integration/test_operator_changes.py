"""What happens to a job from outside: suspended, changed, deleted, expired; and what is left of it."""

from __future__ import annotations

import time

import pytest

from finetune_api.exit_codes import ExitCode
from operator_jobs import COMPLETE, events_of, job, run_to_completion
from testbed.client import Object, RequestError, eventually
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
    assert cluster.client.find(namespace.child_path("later")) is None
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


def test_claim_that_was_deleted_is_made_again_when_the_scheduler_misses_it(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(output={"uri": "pvc://models/tuned", "createClaim": {"size": "1Gi"}}), "bereft")
    namespace.until("bereft", "Reconciling", "Unschedulable")  # there is no volume for it yet
    suspend(cluster, namespace, "bereft", True)
    eventually(lambda: not namespace.pods("bereft"), "the pod is stopped")
    claim = namespace.path("persistentvolumeclaims", "models")
    cluster.client.delete(claim)
    eventually(lambda: cluster.client.find(claim) is None, "the claim is gone")
    suspend(cluster, namespace, "bereft", False)
    missed = 'persistentvolumeclaim "models" not found'
    waiting = lambda: namespace.condition("bereft", "Reconciling").get("message", "")  # noqa: E731
    eventually(lambda: missed in waiting(), "the scheduler's words", 20)
    namespace.volume("models", make_claim=False)
    eventually(lambda: cluster.client.find(claim) is not None, "the claim is made again", 90)
    run_to_completion(cluster, namespace, "bereft")


@pytest.mark.security(13)
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


@pytest.mark.security(13)
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


def test_job_of_a_predecessor_says_nothing_of_its_successor(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "again")
    run_to_completion(cluster, namespace, "again")
    path = namespace.job_path("again")
    cluster.server.kubectl("delete", "ftj", "again", f"--namespace={namespace.name}", "--cascade=orphan")
    eventually(lambda: cluster.client.find(path) is None, "the first is gone")
    before = namespace.child("again")["status"]["completionTime"]
    time.sleep(2)
    refused = {"output": {"uri": "file:///models/tuned"}, "ttlSecondsAfterFinished": 600}
    made = namespace.apply(job(**refused), "again")["metadata"]["creationTimestamp"]
    namespace.until("again", "Failed", "SpecInvalid")
    status = namespace.job("again")["status"]
    assert before < made
    assert made.rstrip("Z") <= status["completionTime"]
    assert status.keys().isdisjoint({"startTime", "progress", "result"})


def test_job_that_is_restored_with_its_end_does_not_train_again(cluster: Cluster, namespace: Namespace) -> None:
    """Backup programs create it first, and write its status then: a Job may be there by that time."""
    namespace.apply(job(), "done")
    run_to_completion(cluster, namespace, "done")
    backup = namespace.job("done")
    cluster.client.delete(namespace.job_path("done"))
    eventually(lambda: not cluster.client.items(namespace.child_path()), "its Job is gone")
    namespace.apply(job(), "done")
    namespace.bound_pod("done")
    namespace.until("done", "Reconciling", "PodsPending")
    cluster.client.patch(f"{namespace.job_path('done')}/status", {"status": backup["status"]})
    eventually(lambda: not cluster.client.items(namespace.child_path()), "what began again is stopped")
    eventually(lambda: not namespace.pods("done"), "its pod is gone")
    status = namespace.job("done")["status"]
    assert (status["phase"], status["result"]) == ("Complete", backup["status"]["result"])


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


def test_nodes_of_a_job_find_each_other_by_the_headless_service(cluster: Cluster, namespace: Namespace) -> None:
    service = apply_wide(cluster, namespace, "wide")["metadata"]["name"]
    pods = namespace.pods("wide")
    assert {pod["spec"]["subdomain"] for pod in pods} == {service}
    assert {pod["spec"]["hostname"] for pod in pods} == {"wide-0", "wide-1"}
    assert {variable(pod, "MASTER_ADDR") for pod in pods} == {f"wide-0.{service}"}
    indexes = [pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] for pod in pods]
    assert sorted(indexes) == ["0", "1"]
    for number, pod in enumerate(pods):
        cluster.kubelet.run(pod, address=f"10.0.0.{number + 1}")
    eventually(lambda: endpoints(cluster, namespace) == {"wide-0", "wide-1"}, "both pods are behind the Service")
    namespace.until("wide", "Running")


def test_job_under_the_name_of_one_just_deleted_has_a_service_of_its_own(
    cluster: Cluster, namespace: Namespace
) -> None:
    first = apply_wide(cluster, namespace, "again")
    cluster.client.delete(namespace.job_path("again"))
    eventually(lambda: cluster.client.find(namespace.job_path("again")) is None, "the FineTuneJob is gone")
    second = apply_wide(cluster, namespace, "again")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    gone = namespace.path("services", first["metadata"]["name"])
    eventually(lambda: cluster.client.find(gone) is None, "the first one's Service is gone", 60)
    assert {pod["spec"]["subdomain"] for pod in namespace.pods("again")} == {second["metadata"]["name"]}
    assert cluster.client.find(namespace.path("services", second["metadata"]["name"]))


def test_job_of_two_nodes_is_complete_when_the_first_is_and_keeps_nothing_running(
    cluster: Cluster, namespace: Namespace
) -> None:
    apply_wide(cluster, namespace, "led")
    pods = sorted(namespace.pods("led"), key=lambda pod: str(pod["spec"]["hostname"]))
    for pod in pods:
        cluster.kubelet.run(pod)
    namespace.until("led", "Running")
    cluster.kubelet.end(pods[0], 0, message=COMPLETE)
    assert namespace.until("led", "Complete")["message"] == COMPLETE["message"]
    status = namespace.job("led")["status"]
    assert status["result"]["digest"] == COMPLETE["result"]["digest"]
    assert status.get("restarts", 0) == 0
    running = lambda: [pod for pod in namespace.pods("led") if pod["status"]["phase"] == "Running"]  # noqa: E731
    eventually(lambda: not running(), "no pod runs")


def test_node_that_fails_counts_once_and_its_peers_not_at_all(cluster: Cluster, namespace: Namespace) -> None:
    apply_wide(cluster, namespace, "shaken", backoffLimit=1)
    for pod in namespace.pods("shaken"):
        cluster.kubelet.run(pod)
    namespace.until("shaken", "Running")
    for pod in namespace.pods("shaken"):
        cluster.kubelet.end(pod, 1 if pod["spec"]["hostname"] == "shaken-1" else ExitCode.PEER_LOST)
    assert "another process" not in namespace.until("shaken", "Reconciling", "InternalError")["message"].lower()

    def living() -> list[Object]:
        return [pod for pod in namespace.pods("shaken") if pod["status"]["phase"] == "Pending"]

    eventually(lambda: len(living()) == 2, "both nodes have a second try", 60)
    for pod in living():
        cluster.kubelet.run(pod)
    namespace.until("shaken", "Running")
    assert namespace.job("shaken")["status"]["restarts"] == 1
    assert namespace.child("shaken")["status"]["failed"] == 1


def apply_wide(cluster: Cluster, namespace: Namespace, name: str, **spec: object) -> Object:
    """A job of two nodes, whose pods are there and bound; returns its Service."""
    if cluster.client.find(namespace.path("persistentvolumeclaims", "models")) is None:
        namespace.volume("models")
    manifest = job(resources={"gpusPerNode": 0, "nodes": 2}, output={"uri": f"pvc://models/{name}"}, **spec)
    uid = namespace.apply(manifest, name)["metadata"]["uid"]
    child = eventually(
        lambda: next((c for c in [cluster.client.find(namespace.child_path(name))] if is_of(c, uid)), None),
        "its Job",
        60,
    )
    own = lambda: [pod for pod in namespace.pods(name) if is_of(pod, child["metadata"]["uid"])]  # noqa: E731
    eventually(lambda: [bool(pod["spec"].get("nodeName")) for pod in own()] == [True, True], "a pod for each node", 60)
    [service] = [found for found in cluster.client.items(namespace.path("services")) if is_of(found, uid)]
    return service


def is_of(body: Object | None, uid: str) -> bool:
    """Whether an object has that owner."""
    return body is not None and uid in [owner["uid"] for owner in body["metadata"].get("ownerReferences", ())]


def variable(pod: Object, name: str) -> str:
    """A variable of the trainer's environment."""
    [container] = pod["spec"]["containers"]
    return next(str(entry["value"]) for entry in container["env"] if entry["name"] == name)


def endpoints(cluster: Cluster, namespace: Namespace) -> set[str]:
    """The host names that the namespace's Services lead to."""
    slices = cluster.client.items(namespace.path("endpointslices", prefix="/apis/discovery.k8s.io/v1"))
    return {endpoint.get("hostname", "") for found in slices for endpoint in found["endpoints"] or ()}
