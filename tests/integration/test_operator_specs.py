"""Manifests that the API server accepts and only code can judge: one condition with the field, no pod, no retry."""

from __future__ import annotations

import time
from typing import Any

import pytest

from finetune_api.support import UNSUPPORTED
from operator_jobs import events_of, job, run_to_completion
from testbed.client import eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operator")]

FILE = {"uri": "file:///data/train.jsonl"}
RELATION = {"strategy": {"distillation": {"teacher": FILE, "relation": {}}}}
NOT_YET: dict[str, dict[str, Any]] = {
    "resources.nodes": {**RELATION, "resources": {"gpusPerNode": 0, "nodes": 2}, "output": {"uri": "pvc://models/x"}},
    "resources.gpusPerNode": {**RELATION, "resources": {"gpusPerNode": 2}},
}


def test_every_field_that_this_release_does_not_support_is_tried() -> None:
    assert set(NOT_YET) == {field for field, _, _ in UNSUPPORTED}


def test_what_is_not_supported_yet_fails_with_the_field_named_and_is_never_retried(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    names = {field: f"not-yet-{number}" for number, field in enumerate(NOT_YET)}
    for field, spec in NOT_YET.items():
        namespace.apply(job(), names[field], **spec)
    hints = {field: hint for field, _, hint in UNSUPPORTED}
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
def test_spec_that_a_newer_crd_let_in_fails_with_the_field_named(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    """The API server's schema may be newer than the operator: what it does not know is named, not passed over."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io"
    crd = cluster.client.get(path)
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    properties["telepathy"] = {"type": "boolean"}
    cluster.client.send("PUT", path, crd)
    try:
        # The API server changes over to the new schema bit by bit: until its watches have, the field is pruned.
        eventually(lambda: "spec.telepathy" in refusal_of_a_new_job(namespace), "the unknown field is named", 40)
        assert "Traceback" not in operator.log()
    finally:
        current = cluster.client.get(path)
        del current["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["telepathy"]
        cluster.client.send("PUT", path, current)


def refusal_of_a_new_job(namespace: Namespace) -> str:
    """What the operator says of one more job with a field that it does not know; empty when it lets it pass."""
    name = f"newer-{time.monotonic_ns()}"
    namespace.apply(job(), name, telepathy=True)
    eventually(lambda: "status" in namespace.job(name), "a status")
    failed = namespace.condition(name, "Failed")
    return str(failed["message"]) if failed["reason"] == "SpecInvalid" else ""


def test_output_that_would_go_with_the_pod_fails_with_the_field_named(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(output={"uri": "file:///models/tuned"}), "inside")
    failed = namespace.until("inside", "Failed", "SpecInvalid")
    assert "spec.output.uri: file:///models/tuned is inside the pod" in failed["message"]
    assert not cluster.client.items(namespace.child_path())
