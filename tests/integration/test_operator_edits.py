"""Changes of a job's spec that the API server accepts reach what runs; what could not be honoured is refused."""

from __future__ import annotations

import pytest

from operator_jobs import job, last_words, run_to_completion
from testbed.client import Object, RequestError, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operator")]


def change(cluster: Cluster, namespace: Namespace, name: str, **spec: object) -> None:
    """Change fields of a job's spec, and wait until the operator has seen it."""
    generation = cluster.client.patch(namespace.job_path(name), {"spec": spec})["metadata"]["generation"]
    observed = lambda: namespace.job(name)["status"]["observedGeneration"] == generation  # noqa: E731
    eventually(observed, "the new generation is observed")


def test_tries_and_deadline_of_a_running_job_are_changed_in_its_job(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.apply(job(backoffLimit=0), "patient")
    cluster.kubelet.run(namespace.bound_pod("patient"))
    namespace.until("patient", "Running")
    first = namespace.child("patient")
    change(cluster, namespace, "patient", backoffLimit=7, activeDeadlineSeconds=3600, ttlSecondsAfterFinished=600)
    changed = namespace.child("patient")
    assert changed["metadata"]["uid"] == first["metadata"]["uid"]
    assert (changed["spec"]["backoffLimit"], changed["spec"]["activeDeadlineSeconds"]) == (7, 3600)
    change(cluster, namespace, "patient", activeDeadlineSeconds=None)
    assert "activeDeadlineSeconds" not in namespace.child("patient")["spec"]
    writes = len(cluster.server.audit.writes(operator.credential))
    cluster.kubelet.end(namespace.bound_pod("patient"), 1)  # would have failed it
    cluster.kubelet.run(namespace.bound_pod("patient"))
    namespace.until("patient", "Running")
    written = cluster.server.audit.writes(operator.credential)[writes:]
    assert "jobs" not in {write.resource for write in written if write.namespace == namespace.name}
    change(cluster, namespace, "patient", activeDeadlineSeconds=1)
    namespace.until("patient", "Failed", "DeadlineExceeded")


TAKE_A_NEW_JOB: dict[str, dict[str, object]] = {
    "resources": {"resources": {"memory": "2Gi"}},
    "pod": {"pod": {"labels": {"team": "research"}}},
    "queueName": {"queueName": "research"},
}


@pytest.mark.parametrize(("field", "changed"), TAKE_A_NEW_JOB.items(), ids=TAKE_A_NEW_JOB)
def test_what_pods_are_made_with_is_refused_while_they_run_and_honoured_when_the_job_is_suspended_with_it(
    cluster: Cluster, namespace: Namespace, field: str, changed: dict[str, object]
) -> None:
    namespace.apply(job(), "larger")
    cluster.kubelet.run(namespace.bound_pod("larger"))
    namespace.until("larger", "Running")
    first = namespace.child("larger")["metadata"]["uid"]
    words = f"{field} cannot be changed while the job runs: set suspend to true with it, and then to false again"
    with pytest.raises(RequestError, match=words) as refused:
        cluster.client.patch(namespace.job_path("larger"), {"spec": changed})
    assert refused.value.status == 422
    change(cluster, namespace, "larger", suspend=True, **changed)
    eventually(lambda: not namespace.pods("larger"), "its pod is stopped")
    eventually(lambda: cluster.client.find(namespace.child_path("larger")) is None, "its Job is gone")
    assert namespace.condition("larger", "Suspended")["status"] == "True"
    cluster.client.patch(namespace.job_path("larger"), {"spec": {"suspend": False}})
    made = namespace.child("larger")
    assert made["metadata"]["uid"] != first
    assert is_changed(made, field)


def is_changed(child: Object, field: str) -> bool:
    """Whether a Job is made as the changed field asks."""
    template = child["spec"]["template"]
    if field == "resources":
        return bool(template["spec"]["containers"][0]["resources"]["limits"]["memory"] == "2Gi")
    if field == "pod":
        return bool(template["metadata"]["labels"]["team"] == "research")
    return bool(child["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research")


def test_job_whose_pod_was_killed_goes_on_with_the_memory_that_it_is_then_given(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(backoffLimit=3, resources={"gpusPerNode": 0, "memory": "1Gi"}), "hungry")
    pod = namespace.bound_pod("hungry")
    cluster.kubelet.run(pod)
    namespace.until("hungry", "Running")
    cluster.kubelet.end(pod, 137, reason="OOMKilled")
    namespace.until("hungry", "Reconciling", "OutOfMemory")
    cluster.client.patch(namespace.job_path("hungry"), {"spec": {"resources": {"memory": "4Gi"}}})

    def next_try() -> Object | None:
        pods = [found for found in namespace.pods("hungry") if found["status"]["phase"] == "Pending"]
        return next((found for found in pods if "4Gi" in str(found["spec"]["containers"][0]["resources"])), None)

    eventually(next_try, "a pod with more memory")
    run_to_completion(cluster, namespace, "hungry")


def test_job_that_was_suspended_changed_and_resumed_at_once_is_made_anew(
    cluster: Cluster, namespace: Namespace
) -> None:
    """The operator may see no more than how the spec is in the end."""
    namespace.apply(job(), "unseen")
    cluster.kubelet.run(namespace.bound_pod("unseen"))
    namespace.until("unseen", "Running")
    first = namespace.child("unseen")["metadata"]["uid"]
    for spec in ({"suspend": True, "resources": {"memory": "2Gi"}}, {"suspend": False}):
        cluster.client.patch(namespace.job_path("unseen"), {"spec": spec})
    eventually(lambda: is_another(cluster.client.find(namespace.child_path("unseen")), first), "another Job")
    assert is_changed(namespace.child("unseen"), "resources")


def test_pod_that_began_while_no_operator_saw_it_is_not_stopped_for_a_change(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.apply(job(), "away")
    pod = namespace.bound_pod("away")
    namespace.until("away", "Reconciling", "PodsPending")
    first = namespace.child("away")["metadata"]["uid"]
    operator.freeze()
    try:
        cluster.kubelet.run(pod)
        cluster.client.patch(namespace.job_path("away"), {"spec": {"resources": {"memory": "2Gi"}}})
    finally:
        operator.thaw()
    told = namespace.until("away", "Running", "ChangeWaits")["message"]
    assert "takes a new Job" in told
    change(cluster, namespace, "away", backoffLimit=9)
    assert namespace.condition("away", "Running")["reason"] == "ChangeWaits"
    found = namespace.child("away")["metadata"]
    assert (found["uid"], "deletionTimestamp" in found) == (first, False)
    change(cluster, namespace, "away", suspend=True)
    eventually(lambda: cluster.client.find(namespace.child_path("away")) is None, "its Job is gone")
    cluster.client.patch(namespace.job_path("away"), {"spec": {"suspend": False}})
    assert is_changed(namespace.child("away"), "resources")
    run_to_completion(cluster, namespace, "away")


def test_job_that_a_finalizer_keeps_from_being_made_anew_is_told_of(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "kept")
    namespace.bound_pod("kept")
    first = namespace.child("kept")["metadata"]["uid"]
    cluster.client.patch(namespace.child_path("kept"), {"metadata": {"finalizers": ["example.com/hold"]}})
    change(cluster, namespace, "kept", resources={"memory": "2Gi"})
    told = namespace.until("kept", "Reconciling", "HeldByFinalizer", seconds=60)["message"]
    assert "its finalizer example.com/hold keeps it" in told
    cluster.client.patch(namespace.child_path("kept"), {"metadata": {"finalizers": None}})
    eventually(lambda: is_another(cluster.client.find(namespace.child_path("kept")), first), "another Job")
    run_to_completion(cluster, namespace, "kept")


def is_another(child: Object | None, uid: str) -> bool:
    return child is not None and child["metadata"]["uid"] != uid


@pytest.mark.parametrize("changed", [*TAKE_A_NEW_JOB.values(), {"backoffLimit": 9}, {"activeDeadlineSeconds": 9}])
def test_change_of_a_job_that_has_ended_is_refused(
    cluster: Cluster, namespace: Namespace, changed: dict[str, object]
) -> None:
    namespace.apply(job(), "over")
    run_to_completion(cluster, namespace, "over")
    with pytest.raises(RequestError, match="because the job has ended; create a new job"):
        cluster.client.patch(namespace.job_path("over"), {"spec": changed})
    change(cluster, namespace, "over", ttlSecondsAfterFinished=600, suspend=True)


def test_change_of_a_job_whose_trainer_refused_its_spec_is_refused(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "ten")
    pod = namespace.bound_pod("ten")
    cluster.kubelet.run(pod)
    cluster.kubelet.end(pod, 10, message=last_words(10, "SpecInvalid", "spec.resources.gpusPerNode is 4"))
    namespace.until("ten", "Failed", "SpecInvalid")
    with pytest.raises(RequestError, match="because the job has ended; create a new job"):
        cluster.client.patch(namespace.job_path("ten"), {"spec": {"resources": {"memory": "2Gi"}}})


def test_job_without_a_claim_for_its_output_says_what_suspending_it_costs(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(output={"uri": "s3://models/tuned"}), "costly")
    cluster.kubelet.run(namespace.bound_pod("costly"))
    namespace.until("costly", "Running")
    change(cluster, namespace, "costly", suspend=True)
    assert "training will start anew" in namespace.until("costly", "Suspended")["message"]
