"""The batch/v1 Job: one Indexed pod a node, retried as the trainer's exit codes say."""

from __future__ import annotations

from typing import Any

import pytest

from contract_cases import changed, valid_job
from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import parse_job
from finetune_operator.plan import names
from finetune_operator.plan.builders.job import build_job
from finetune_operator.plan.run import make_run
from plan_builders import SETTINGS

SHARED = {"uri": "pvc://models/router"}


def built(**fields: object) -> dict[str, Any]:
    manifest = valid_job()
    for name, value in fields.items():
        manifest = changed(manifest, ("spec", name), value)
    return build_job(make_run("team-a", "router", "u1", parse_job(manifest).spec), SETTINGS)


def action(job: dict[str, Any], exit_code: int) -> str:
    """What Kubernetes does with a pod that ends so, by the first rule that matches; counting is its default."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes and codes["operator"] == "In" and exit_code in codes["values"]:
            return str(rule["action"])
    return "Count"


def test_the_job_is_named_owned_and_labelled_for_its_fine_tune_job() -> None:
    metadata = built()["metadata"]
    assert (metadata["namespace"], metadata["name"]) == ("team-a", "router")
    assert [owner["uid"] for owner in metadata["ownerReferences"]] == ["u1"]
    assert metadata["labels"] == names.labels("router")


@pytest.mark.parametrize("nodes", [1, 4])
def test_there_is_one_indexed_pod_a_node(nodes: int) -> None:
    spec = built(resources={"nodes": nodes}, output=SHARED)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", nodes, nodes)


def test_a_job_of_several_nodes_is_done_when_the_one_with_the_result_is() -> None:
    spec = built(resources={"nodes": 3}, output=SHARED)["spec"]
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert "successPolicy" not in built()["spec"]


def test_a_replacement_waits_until_the_pod_before_it_has_ended() -> None:
    assert built()["spec"]["podReplacementPolicy"] == "Failed"


@pytest.mark.parametrize("code", [code for code in ExitCode if code.permanent])
def test_a_permanent_failure_is_never_retried(code: ExitCode) -> None:
    assert action(built(), code) == "FailJob"


@pytest.mark.parametrize("code", [1, 2, 40, 41, 42, 43, 137, 139])
def test_what_may_pass_counts_as_a_try(code: int) -> None:
    assert action(built(), code) == "Count"


def test_a_graceful_stop_is_no_try() -> None:
    assert action(built(), ExitCode.STOPPED) == "Ignore"


def test_a_node_that_lost_its_peers_is_no_try_beside_that_of_the_peer() -> None:
    assert action(built(), ExitCode.PEER_LOST) == "Ignore"


def test_a_disruption_is_judged_before_the_exit_code() -> None:
    first = built()["spec"]["podFailurePolicy"]["rules"][0]
    assert first["action"] == "Ignore"
    assert first["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_tries_and_deadline_are_the_specs() -> None:
    spec = built(backoffLimit=7, activeDeadlineSeconds=60)["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (7, 60)


def test_the_shape_tells_what_takes_a_new_job_to_change() -> None:
    def shape(**fields: object) -> str:
        return str(built(**fields)["metadata"]["annotations"][names.SHAPE_ANNOTATION])

    assert shape() == shape(backoffLimit=7, activeDeadlineSeconds=60, suspend=True, resources={}, pod={"labels": {}})
    shapes = [shape(resources={"cpu": "1"}), shape(pod={"labels": {"a": "b"}}), shape(queueName="research"), shape()]
    assert len(set(shapes)) == len(shapes)


def test_the_shape_of_a_job_of_an_earlier_release_stays_the_same() -> None:
    """Or an upgrade of the operator would stop what runs: what a release adds may not be part of it by default."""
    fields = {"resources": {"gpusPerNode": 0, "memory": "16Gi"}, "pod": {"nodeSelector": {"pool": "a"}}}
    assert built(**fields)["metadata"]["annotations"][names.SHAPE_ANNOTATION] == "bcadd15e12a7b141"


def test_without_a_deadline_there_is_none() -> None:
    assert "activeDeadlineSeconds" not in built()["spec"]


def test_the_operator_and_not_the_job_controller_sees_to_the_time_to_live() -> None:
    assert "ttlSecondsAfterFinished" not in built(ttlSecondsAfterFinished=0)["spec"]


@pytest.mark.parametrize(
    ("fields", "suspended"),
    [({}, False), ({"suspend": True}, True), ({"queueName": "research"}, True)],
)
def test_a_job_of_a_queue_starts_suspended_for_kueue_to_admit(fields: dict[str, Any], suspended: bool) -> None:
    assert built(**fields)["spec"]["suspend"] is suspended


def test_the_queue_is_named_by_kueues_label() -> None:
    assert built(queueName="research")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert "kueue.x-k8s.io/queue-name" not in built()["metadata"]["labels"]
