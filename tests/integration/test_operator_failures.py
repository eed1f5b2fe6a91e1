"""Why a job does not run or has failed, each as a real control plane shows it: one reason, and what to do about it."""

from __future__ import annotations

import re
import shlex
from functools import partial

import pytest

from operator_jobs import COMPLETE, events_of, job, last_words
from testbed.client import Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.kubelet import NODE
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operator")]

RECONCILES = "controller_runtime_reconcile_total"


def has_reconciled(operator: OperatorProcess, before: float) -> bool:
    return operator.metric(RECONCILES) > before


def fail(
    cluster: Cluster, namespace: Namespace, name: str, exit_code: int, *, reason: str = "", message: str | Object = ""
) -> str:
    """Have the job's one pod run and end; returns the pod's name."""
    pod = namespace.bound_pod(name)
    cluster.kubelet.run(pod)
    cluster.kubelet.end(pod, exit_code, reason=reason, message=message)
    return str(pod["metadata"]["name"])


def test_job_that_no_node_can_take_is_unschedulable_in_the_schedulers_words(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(resources={"gpusPerNode": 1}), "gpu")
    waits = namespace.until("gpu", "Reconciling", "Unschedulable")
    [pod] = eventually(lambda: namespace.pods("gpu"), "the pod")
    said = next(entry for entry in pod["status"]["conditions"] if entry["type"] == "PodScheduled")["message"]
    assert "Insufficient nvidia.com/gpu" in said
    assert waits["message"] == f"{pod['metadata']['name']}: {said}"
    status = namespace.job("gpu")["status"]
    assert (status["phase"], namespace.condition("gpu", "Running")["reason"]) == ("Pending", "Unschedulable")


def test_image_that_cannot_be_pulled_is_named_and_said_once(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    namespace.apply(job(), "imageless")
    pod = namespace.bound_pod("imageless")
    cluster.kubelet.wait(pod, "ErrImagePull", "rpc error: not found")
    waits = namespace.until("imageless", "Reconciling", "ImagePullFailed")
    assert "trainer:test" in waits["message"]
    written = namespace.job("imageless")["metadata"]["resourceVersion"]
    for reason in ("ImagePullBackOff", "ErrImagePull", "ImagePullBackOff"):  # as a kubelet alternates
        looked_at = operator.metric(RECONCILES)
        cluster.kubelet.wait(pod, reason, f"back-off: {reason}")
        eventually(partial(has_reconciled, operator, looked_at), "the operator has looked at it")
    assert namespace.job("imageless")["metadata"]["resourceVersion"] == written
    cluster.kubelet.run(pod)  # somebody has pushed it
    namespace.until("imageless", "Running")


def test_out_of_memory_is_told_by_the_kernels_word(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(backoffLimit=0), "hungry")
    pod = fail(cluster, namespace, "hungry", 137, reason="OOMKilled")
    failed = namespace.until("hungry", "Failed", "OutOfMemory")
    assert failed["message"].startswith(f"{pod} used more than its memory limit")
    assert "spec.resources.memory" in failed["message"]


def test_out_of_memory_is_told_by_the_exit_code_alone(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(backoffLimit=0), "killed")
    pod = fail(cluster, namespace, "killed", 137)
    failed = namespace.until("killed", "Failed", "OutOfMemory")
    assert f"{pod} was killed (exit code 137)" in failed["message"]


def test_pod_evicted_for_what_it_wrote_is_a_failed_try_in_the_kubelets_words(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(backoffLimit=0, resources={"gpusPerNode": 0, "ephemeralStorage": "20Gi"}), "wordy")
    pod = namespace.bound_pod("wordy")
    assert pod["spec"]["containers"][0]["resources"]["requests"] == {"ephemeral-storage": "20Gi"}
    cluster.kubelet.run(pod)
    namespace.until("wordy", "Running")
    cluster.kubelet.evict_for_storage(pod, 'Usage of EmptyDir volume "scratch" exceeds the limit "20Gi". ')
    failed = namespace.until("wordy", "Failed", "StorageFull")
    assert 'Usage of EmptyDir volume "scratch" exceeds the limit "20Gi"' in failed["message"]
    assert "spec.resources.ephemeralStorage" in failed["message"]


def test_invalid_data_fails_after_exactly_one_pod(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(backoffLimit=3), "bad-data")
    fail(
        cluster,
        namespace,
        "bad-data",
        11,
        message=last_words(11, "DataInvalid", "row 7 has no label", hint="give it one"),
    )
    failed = namespace.until("bad-data", "Failed", "DataInvalid")
    assert failed["message"] == "row 7 has no label; give it one"
    assert len(namespace.pods("bad-data")) == 1
    status = namespace.job("bad-data")["status"]
    assert (status["phase"], "completionTime" in status, "result" in status) == ("Failed", True, False)
    assert namespace.condition("bad-data", "Stalled")["status"] == "True"
    assert namespace.condition("bad-data", "Ready")["status"] == "False"
    eventually(lambda: events_of(namespace, "bad-data") == ["Running", "DataInvalid"], "an Event a transition")


def test_non_finite_loss_fails_at_once_though_the_trainer_could_not_write_last_words(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(), "diverged")
    pod = fail(cluster, namespace, "diverged", 15, message="... the end of a log ...")
    failed = namespace.until("diverged", "Failed", "NonFiniteLoss")
    assert failed["message"].startswith(f"{pod}: Loss, gradient or weights became infinite or NaN")
    assert len(namespace.pods("diverged")) == 1


@pytest.fixture(scope="module")
def failed_once(cluster: Cluster, operator: OperatorProcess) -> Namespace:
    """Three jobs whose first pod has ended; the Job controller waits ten seconds before it makes another."""
    namespace = cluster.namespace()
    for name, tries in (("moved", 0), ("drained", 0), ("unlucky", 1)):
        namespace.apply(job(backoffLimit=tries), name)
    moved = namespace.bound_pod("moved")
    cluster.kubelet.run(moved)
    namespace.until("moved", "Running")
    cluster.kubelet.evict(moved)
    fail(cluster, namespace, "drained", 143, message=last_words(143, "Stopped", "saved step 5"))
    fail(cluster, namespace, "unlucky", 41)
    waits = namespace.until("unlucky", "Reconciling", "NetworkUnavailable", seconds=5)
    assert waits["message"].endswith("waiting for the next try")
    return namespace


def test_evicted_pod_does_not_count_and_is_replaced(cluster: Cluster, failed_once: Namespace) -> None:
    waits = failed_once.until("moved", "Reconciling")
    assert waits["reason"] in ("Preempted", "PodsPending")
    second = failed_once.bound_pod("moved")
    cluster.kubelet.run(second)
    failed_once.until("moved", "Running")
    cluster.kubelet.end(second, 0)
    failed_once.until("moved", "Complete")
    assert failed_once.job("moved")["status"]["restarts"] == 1
    assert len(failed_once.pods("moved")) == 2
    eventually(lambda: events_of(failed_once, "moved") == ["Running", "Running", "Complete"], "an Event a transition")


def test_graceful_stop_does_not_count_either(cluster: Cluster, failed_once: Namespace) -> None:
    pod = failed_once.bound_pod("drained")
    cluster.kubelet.run(pod)
    cluster.kubelet.end(pod, 0)
    failed_once.until("drained", "Complete")
    assert failed_once.job("drained")["status"]["restarts"] == 0


def test_failures_that_may_pass_are_retried_until_the_limit_and_the_last_is_told(
    cluster: Cluster, failed_once: Namespace
) -> None:
    second = fail(cluster, failed_once, "unlucky", 40)
    failed = failed_once.until("unlucky", "Failed", "StorageFull")
    assert failed["message"].startswith(f"{second}: The disk is full")
    assert failed_once.job("unlucky")["status"]["restarts"] == 1
    assert len(failed_once.pods("unlucky")) == 2


def test_deadline_is_kept_by_the_job_controller_and_named(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(activeDeadlineSeconds=2), "slow")
    cluster.kubelet.run(namespace.bound_pod("slow"))
    failed = namespace.until("slow", "Failed", "DeadlineExceeded")
    assert "spec.activeDeadlineSeconds" in failed["message"]
    eventually(lambda: all(pod["status"]["phase"] != "Running" for pod in namespace.pods("slow")), "its pod stops")


def test_missing_secret_is_named_while_the_pod_waits(cluster: Cluster, namespace: Namespace) -> None:
    secrets = [{"name": "HF_TOKEN", "secret": "hub", "key": "token"}]
    namespace.apply(job(pod={"envFromSecrets": secrets}), "secretless")
    pod = namespace.bound_pod("secretless")
    cluster.kubelet.wait(pod, "CreateContainerConfigError", 'secret "hub" not found')
    waits = namespace.until("secretless", "Reconciling", "PodConfigInvalid")
    assert 'secret "hub" not found' in waits["message"]
    assert "spec.pod.envFromSecrets" in waits["message"]


@pytest.mark.security(24)
def test_child_that_the_api_server_refuses_is_told_with_its_words_and_made_when_it_may_be(
    cluster: Cluster, namespace: Namespace
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    cluster.client.create(namespace.path("resourcequotas"), quota)
    used = lambda: "hard" in cluster.client.get(namespace.path("resourcequotas", "none"))["status"]  # noqa: E731
    eventually(used, "the quota is counted")
    namespace.apply(job(), "over-quota")
    refused = namespace.until("over-quota", "Reconciling", "ChildRefused")
    assert "exceeded quota: none" in refused["message"]
    cluster.client.delete(namespace.path("resourcequotas", "none"))
    namespace.bound_pod("over-quota")
    namespace.until("over-quota", "Reconciling", "PodsPending")


@pytest.mark.security(24)
def test_pods_that_the_api_server_refuses_are_told_of_and_made_when_they_may_be(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(pod={"priorityClassName": "research-jobs"}), "classless")
    refused = namespace.until("classless", "Reconciling", "PodsRefused", seconds=40)
    assert refused["message"].startswith("0 of 1 pods could be made; ")
    assert namespace.pods("classless") == []
    [command] = re.findall("`kubectl (.+)`", refused["message"])
    said = cluster.server.kubectl(*shlex.split(command))
    assert "no PriorityClass with name research-jobs was found" in said.stdout
    body = {"metadata": {"name": "research-jobs"}, "value": 1}
    cluster.client.create("/apis/scheduling.k8s.io/v1/priorityclasses", body)
    pod = eventually(lambda: namespace.pods("classless"), "its pod", seconds=70)[0]
    namespace.until("classless", "Reconciling", "PodsPending")
    cluster.kubelet.run(pod)
    namespace.until("classless", "Running")


def test_pod_on_a_lost_node_is_named_and_what_the_message_says_gets_it_replaced(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(), "lost")
    pod = namespace.bound_pod("lost")
    cluster.kubelet.run(pod)
    namespace.until("lost", "Running")
    cluster.kubelet.lose(pod, grace_seconds=1)
    assert namespace.until("lost", "Reconciling")["reason"] == "PodsPending"
    stuck = namespace.until("lost", "Reconciling", "PodNotStopping", seconds=60)
    assert stuck["message"].startswith(f"{pod['metadata']['name']} was told to stop, and its node {NODE} does not say")
    [commands] = re.findall("`(.+)`", stuck["message"])
    for command in commands.split(" && "):
        done = cluster.server.kubectl(*shlex.split(command)[1:])
        assert done.returncode == 0, done.stderr
    second = namespace.bound_pod("lost")
    assert second["metadata"]["uid"] != pod["metadata"]["uid"]
    cluster.kubelet.run(second)
    namespace.until("lost", "Running")


@pytest.mark.parametrize(
    ("exit_code", "reason", "message", "told"),
    [
        (128, "StartError", "unsatisfied condition: cuda>=13.0, please update your driver", "ContainerNotStarted"),
        (137, "ContainerStatusUnknown", "The container could not be located", "Preempted"),
    ],
)
def test_what_happened_to_the_container_is_told_and_not_what_its_exit_code_would_mean(
    cluster: Cluster, namespace: Namespace, exit_code: int, reason: str, message: str, told: str
) -> None:
    namespace.apply(job(backoffLimit=0), "ended")
    fail(cluster, namespace, "ended", exit_code, reason=reason, message=message)
    assert message in namespace.until("ended", "Failed", told)["message"]
    status = namespace.job("ended")["status"]
    assert namespace.job("ended")["metadata"]["creationTimestamp"] <= status["startTime"] <= status["completionTime"]


def test_job_fails_for_another_container_and_is_not_said_to_be_complete(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(backoffLimit=0), "mesh")
    pod = namespace.bound_pod("mesh")
    cluster.kubelet.run(pod)
    namespace.until("mesh", "Running")
    cluster.kubelet.fail_beside(pod, "istio-proxy", 137, reason="OOMKilled", message=COMPLETE)
    failed = namespace.until("mesh", "Failed", "OtherContainerFailed")
    assert "the trainer is done, but the container istio-proxy failed (exit code 137, OOMKilled)" in failed["message"]
    eventually(lambda: "OtherContainerFailed" in events_of(namespace, "mesh"), "the Event")


def test_init_container_that_something_else_has_added_is_named(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(backoffLimit=0), "injected")
    pod = namespace.bound_pod("injected")
    cluster.kubelet.wait_before(pod, "vault-agent", "ImagePullBackOff")
    waits = namespace.until("injected", "Reconciling", "ImagePullFailed")
    assert "the image vault-agent:test of the container vault-agent cannot be pulled" in waits["message"]
    cluster.kubelet.fail_before(pod, "vault-agent", 1, "permission denied")
    failed = namespace.until("injected", "Failed", "OtherContainerFailed")
    assert "the container vault-agent failed (exit code 1, permission denied)" in failed["message"]


def test_event_of_a_long_message_has_its_beginning_in_any_script(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "wide")
    fail(cluster, namespace, "wide", 11, message=last_words(11, "DataInvalid", "标签" * 450))
    namespace.until("wide", "Failed", "DataInvalid")
    eventually(lambda: "DataInvalid" in events_of(namespace, "wide"), "the Event")


def test_pod_that_its_node_rejects_is_a_failed_try_in_the_kubelets_words(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.apply(job(backoffLimit=0), "rejected")
    cluster.kubelet.reject(namespace.bound_pod("rejected"), "UnexpectedAdmissionError", "no healthy devices present")
    failed = namespace.until("rejected", "Failed", "RejectedByNode")
    assert f"rejected by the node {NODE} (UnexpectedAdmissionError: no healthy devices present)" in failed["message"]


def test_failure_of_the_cluster_leaves_no_traceback(operator: OperatorProcess) -> None:
    assert "Traceback" not in operator.log()
