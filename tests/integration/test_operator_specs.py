"""Manifests that the API server accepts and only code can judge: one condition with the field, no pod, no retry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from finetune_api.support import UNSUPPORTED
from operator_jobs import COMPLETE, events_of, job, run_to_completion
from testbed.client import Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operator")]

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io"
FILE = {"uri": "file:///data/train.jsonl"}
RELATION = {"strategy": {"distillation": {"teacher": FILE, "relation": {}}}}
NOT_YET: dict[str, dict[str, Any]] = {
    "resources.nodes": {**RELATION, "resources": {"gpusPerNode": 0, "nodes": 2}, "output": {"uri": "pvc://models/x"}},
    "resources.gpusPerNode": {**RELATION, "resources": {"gpusPerNode": 2}},
}


def test_every_field_that_this_release_does_not_support_is_tried() -> None:
    assert set(NOT_YET) == {each.field for each in UNSUPPORTED}


def test_what_is_not_supported_yet_fails_with_the_field_named_and_is_never_retried(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    names = {field: f"not-yet-{number}" for number, field in enumerate(NOT_YET)}
    for field, spec in NOT_YET.items():
        namespace.apply(job(), names[field], **spec)
    hints = {each.field: each.hint for each in UNSUPPORTED}
    for field, name in names.items():
        failed = namespace.until(name, "Failed", "SpecInvalid")
        assert f"spec.{field}: part of the contract, but not run by this release yet" in failed["message"]
        assert hints[field] in failed["message"]
        assert namespace.job(name)["status"]["phase"] == "Failed"
    assert not cluster.client.items(namespace.child_path())
    assert not cluster.client.items(namespace.path("pods"))
    assert_at_rest(cluster, namespace, operator)
    for name in names.values():
        assert events_of(namespace, name) == ["SpecInvalid"]


def assert_at_rest(cluster: Cluster, namespace: Namespace, operator: OperatorProcess) -> None:
    """Nothing is looked at, written or tried again."""
    time.sleep(1)  # the events of the last writes come back
    reconciles = operator.metric("controller_runtime_reconcile_total")
    writes = len(cluster.server.audit.writes(operator.credential))
    time.sleep(4)
    assert operator.metric("controller_runtime_reconcile_total") == reconciles
    assert len(cluster.server.audit.writes(operator.credential)) == writes
    assert operator.metric("workqueue_retries_total") == 0
    assert operator.metric("controller_runtime_reconcile_errors_total") == 0
    assert "Traceback" not in operator.log()


def test_job_refused_for_its_spec_runs_once_the_spec_is_mended(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(resources={"gpusPerNode": 2}, **RELATION), "mended")
    namespace.until("mended", "Failed", "SpecInvalid")
    cluster.client.patch(namespace.job_path("mended"), {"spec": {"resources": {"gpusPerNode": 0}}})
    run_to_completion(cluster, namespace, "mended")
    assert namespace.condition("mended", "Failed")["status"] == "False"


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
    with newer_crd(cluster):
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
def newer_crd(cluster: Cluster) -> Iterator[None]:
    """The CRD of a release that has one more field, with a default; then the one that was there."""

    def training(crd: Object) -> Object:
        spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        found: Object = spec["properties"]["training"]["properties"]
        return found

    crd = cluster.client.get(CRD)
    training(crd)["telepathy"] = {"type": "boolean", "default": False}
    cluster.client.send("PUT", CRD, crd)
    try:
        yield
    finally:
        crd = cluster.client.get(CRD)
        del training(crd)["telepathy"]
        cluster.client.send("PUT", CRD, crd)


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
