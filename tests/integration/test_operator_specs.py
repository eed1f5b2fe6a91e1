"""Manifests that the API server accepts and only code can judge: one condition with the field, no pod, no retry."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from operator_jobs import COMPLETE, events_of, job, run_to_completion
from testbed.client import Object, RequestError, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operator")]

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io"
FILE = {"uri": "file:///data/train.jsonl"}
TWO_PROCESSES = {
    "strategy": {"distillation": {"teacher": FILE, "relation": {}, "response": {}}},
    "resources": {"gpusPerNode": 2},
}


def test_what_an_older_crd_let_in_fails_with_the_field_named_and_runs_once_it_is_mended(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    with changed_crd(cluster, without_rules):
        name = eventually(lambda: let_in(namespace), "the older CRD takes it", 40)
        failed = namespace.until(name, "Failed", "SpecInvalid")
        assert failed["message"].startswith("spec.resources: relations between samples")
        assert namespace.job(name)["status"]["phase"] == "Failed"
        assert not cluster.client.items(namespace.child_path())
        assert not cluster.client.items(namespace.path("pods"))
        assert_at_rest(cluster, namespace, operator)
        assert events_of(namespace, name) == ["SpecInvalid"]
    eventually(lambda: not let_in(namespace), "the CRD refuses it", 40)
    status = cluster.client.patch(f"{namespace.job_path(name)}/status", {"status": {"restarts": 1}})["status"]
    assert status["restarts"] == 1  # what only the operator writes is not held up by it
    cluster.client.patch(namespace.job_path(name), {"spec": {"resources": {"gpusPerNode": 0}}})
    run_to_completion(cluster, namespace, name)
    assert namespace.condition(name, "Failed")["status"] == "False"


def test_crd_that_keeps_less_of_a_status_hides_no_cause_and_costs_no_write_at_rest(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    """As where the operator is upgraded, and the CRD is not."""
    with changed_crd(cluster, without_the_wait):
        path = f"{namespace.job_path('refused')}/status"
        namespace.apply(job(pod={"priorityClassName": "unheard-of"}), "refused")
        dropped = lambda: "podsMissingSince" not in cluster.client.patch(path, NOW_MISSING)["status"]  # noqa: E731
        eventually(dropped, "the older CRD has no such field", 40)
        namespace.until("refused", "Reconciling", "PodsRefused", seconds=40)
        assert_nothing_happens(cluster, operator)
        assert "podsMissingSince" not in namespace.job("refused")["status"]


NOW_MISSING = {"status": {"podsMissingSince": "2026-01-01T12:00:00Z"}}


def without_the_wait(properties: Object) -> None:
    """The schema of a release that notes no such time."""
    del properties["status"]["properties"]["podsMissingSince"]


def without_rules(properties: Object) -> None:
    """The schema of a release that knows no rules of the spec."""
    del properties["spec"]["x-kubernetes-validations"]


def let_in(namespace: Namespace) -> str:
    """The name of a new job of several processes that compares samples, if the API server takes it."""
    name = f"compares-{time.monotonic_ns()}"
    try:
        namespace.apply(job(), name, **TWO_PROCESSES)
    except RequestError:
        return ""
    return name


def assert_at_rest(cluster: Cluster, namespace: Namespace, operator: OperatorProcess) -> None:
    """Nothing is looked at, written or tried again."""
    assert_nothing_happens(cluster, operator)
    assert operator.metric("workqueue_retries_total") == 0
    assert operator.metric("controller_runtime_reconcile_errors_total") == 0
    assert "Traceback" not in operator.log()


def assert_nothing_happens(cluster: Cluster, operator: OperatorProcess) -> None:
    """Nothing is looked at or written."""
    time.sleep(1)  # the events of the last writes come back
    reconciles = operator.metric("controller_runtime_reconcile_total")
    writes = len(cluster.server.audit.writes(operator.credential))
    time.sleep(4)
    assert operator.metric("controller_runtime_reconcile_total") == reconciles
    assert len(cluster.server.audit.writes(operator.credential)) == writes


@pytest.mark.security(2)
def test_newer_crd_stops_no_job_that_runs_and_a_new_one_waits_with_the_field_named(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    """As in an upgrade, whose CRD comes first, and in a downgrade that leaves it there."""
    namespace.apply(job(), "runs")
    pod = namespace.bound_pod("runs")
    cluster.kubelet.run(pod)
    namespace.until("runs", "Running")
    child = namespace.child("runs")["metadata"]["uid"]
    with changed_crd(cluster, with_one_more_field):
        # The API server changes over to the new schema bit by bit.
        waiting = eventually(lambda: new_job_that_waits(namespace), "the unknown field is named", 40)
        assert (
            "spec.training.telepathy: not known to this version" in namespace.condition(waiting, "Running")["message"]
        )
        assert cluster.client.find(namespace.child_path(waiting)) is None
        written = eventually(lambda: touched(cluster, namespace, "runs"), "the default is filled in", 40)
        assert written["spec"]["training"]["telepathy"] is False
        puzzled = lambda: "does not understand spec.training.telepathy" in running_message(namespace)  # noqa: E731
        eventually(puzzled, "the running job says so", 20)
        assert namespace.job("runs")["status"]["phase"] == "Running"
        found = namespace.child("runs")["metadata"]
        assert (found["uid"], "deletionTimestamp" in found) == (child, False)
    eventually(lambda: touched(cluster, namespace, waiting) and namespace.pods(waiting), "it begins", 60)
    cluster.kubelet.end(pod, 0, message=COMPLETE)
    namespace.until("runs", "Complete")
    assert "Traceback" not in operator.log()


@contextmanager
def changed_crd(cluster: Cluster, change: Callable[[Object], None]) -> Iterator[None]:
    """The CRD of another release, whose schema differs; then the one that was there."""
    crd = cluster.client.get(CRD)
    before = copy.deepcopy(crd["spec"])
    change(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])
    cluster.client.send("PUT", CRD, crd)
    try:
        yield
    finally:
        cluster.client.send("PUT", CRD, {**cluster.client.get(CRD), "spec": before})


def with_one_more_field(properties: Object) -> None:
    """The schema of a release that has one more field, with a default."""
    properties["spec"]["properties"]["training"]["properties"]["telepathy"] = {"type": "boolean", "default": False}


def new_job_that_waits(namespace: Namespace) -> str:
    """The name of one more job, if the operator waits for one that knows its fields."""
    name = f"newer-{time.monotonic_ns()}"
    namespace.apply(job(), name)
    eventually(lambda: "status" in namespace.job(name), "a status")
    return name if namespace.condition(name, "Reconciling")["reason"] == "FieldUnknown" else ""


def touched(cluster: Cluster, namespace: Namespace, name: str) -> Object:
    """A job after a write by somebody: it is stored as the CRD has it now."""
    label = {"metadata": {"labels": {"touched": str(time.monotonic_ns())}}}
    return cluster.client.patch(namespace.job_path(name), label)


def running_message(namespace: Namespace) -> str:
    return str(namespace.condition("runs", "Running")["message"])


def test_output_that_would_go_with_the_pod_fails_with_the_field_named(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(output={"uri": "file:///models/tuned"}), "inside")
    failed = namespace.until("inside", "Failed", "SpecInvalid")
    assert "spec.output.uri: file:///models/tuned is inside the pod" in failed["message"]
    assert not cluster.client.items(namespace.child_path())
