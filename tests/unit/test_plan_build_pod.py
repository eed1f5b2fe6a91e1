"""The training pod: closed, within the restricted Pod Security Standard, and carrying its run with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from contract_cases import VALID_SPECS, changed, valid_job
from finetune_api.manifest import parse_job
from finetune_api.run import Run
from finetune_api.v1alpha1.scheduling import TaintEffect, Toleration
from finetune_operator.plan import names
from finetune_operator.plan.builders.pod import build_pod_template
from finetune_operator.plan.run import make_run
from finetune_operator.plan.settings import PodSettings
from plan_builders import SETTINGS

USER_FIELDS = ("runAsUser", "runAsGroup", "fsGroup")
REPORTING = replace(SETTINGS, progress_url="https://progress.example:8443", progress_ca="PEM")


def built(settings: PodSettings = SETTINGS, **fields: object) -> dict[str, Any]:
    manifest = valid_job()
    for name, value in fields.items():
        manifest = changed(manifest, ("spec", name), value)
    return build_pod_template(make_run("team-a", "router", "u1", parse_job(manifest).spec), settings)


def container(template: dict[str, Any]) -> dict[str, Any]:
    [only] = template["spec"]["containers"]
    return dict(only)


def environment(template: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(template)["env"]}


def volumes(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return _by_name(template["spec"]["volumes"])


def mounts(template: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return _by_name(container(template)["volumeMounts"])


def _by_name(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in entries}


@pytest.mark.parametrize("name", VALID_SPECS)
def test_the_trainer_reads_the_very_run_from_the_pods_annotation(name: str) -> None:
    run = make_run("team-a", "router", "u1", parse_job(valid_job(name)).spec)
    template = build_pod_template(run, SETTINGS)
    assert Run.model_validate_json(template["metadata"]["annotations"][names.RUN_ANNOTATION]) == run
    [item] = volumes(template)["run"]["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{names.RUN_ANNOTATION}']"
    assert container(template)["command"][-1] == f"{mounts(template)['run']['mountPath']}/{item['path']}"


@pytest.mark.security(1, 3)
def test_the_pod_is_within_the_restricted_standard() -> None:
    template = built()
    pod, trainer = template["spec"]["securityContext"], container(template)["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert [pod[field] for field in USER_FIELDS] == [65532] * 3
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert trainer["allowPrivilegeEscalation"] is False
    assert trainer["readOnlyRootFilesystem"] is True
    assert trainer["capabilities"] == {"drop": ["ALL"]}
    allowed = {"downwardAPI", "emptyDir", "persistentVolumeClaim", "projected"}
    assert all(set(volume) <= allowed for volume in volumes(built(REPORTING)).values())


@pytest.mark.security(4)
def test_the_pod_gets_no_credential_of_the_api_server() -> None:
    assert built()["spec"]["automountServiceAccountToken"] is False
    assert "progress" not in volumes(built())


def test_the_pod_stops_gracefully_and_is_never_restarted_in_place() -> None:
    spec = built()["spec"]
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Never", 120)


@pytest.mark.security(12)
def test_claims_are_mounted_as_they_are_used() -> None:
    template = built(model={"uri": "pvc://base/minilm"}, output={"uri": "pvc://models/router"})
    assert volumes(template)["claim-0"]["persistentVolumeClaim"] == {"claimName": "base", "readOnly": True}
    assert volumes(template)["claim-1"]["persistentVolumeClaim"] == {"claimName": "models"}
    assert mounts(template)["claim-0"] == {"mountPath": "/workspace/volumes/base", "readOnly": True}
    assert mounts(template)["claim-1"] == {"mountPath": "/workspace/volumes/models"}


def test_a_job_between_object_stores_needs_no_claim() -> None:
    keys = [{"name": name, "secret": "store", "key": name} for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")]
    template = built(
        model={"uri": "s3://models/base"}, data={"train": {"uri": "https://files.example/rows.jsonl"}},
        output={"uri": "s3://models/tuned"}, pod={"envFromSecrets": keys},
    )  # fmt: skip
    assert not [name for name, volume in volumes(template).items() if "persistentVolumeClaim" in volume]
    run = Run.model_validate_json(template["metadata"]["annotations"][names.RUN_ANNOTATION])
    assert run.work_dir.startswith(f"{mounts(template)['scratch']['mountPath']}/")
    assert environment(template)["AWS_ENDPOINT_URL"]["secretKeyRef"] == {"name": "store", "key": "AWS_ENDPOINT_URL"}


def test_every_mount_has_its_volume() -> None:
    template = built(REPORTING, output={"uri": "pvc://models/router"})
    assert set(mounts(template)) == set(volumes(template))


def test_resources_become_requests_and_limits() -> None:
    resources = {"cpu": "1500m", "memory": "16Gi", "gpusPerNode": 2, "gpuResourceName": "amd.com/gpu"}
    assert container(built(resources=resources))["resources"] == {
        "requests": {"cpu": "1500m", "memory": "16Gi"},
        "limits": {"memory": "16Gi", "amd.com/gpu": "2"},
    }


def test_a_job_on_cpu_asks_for_no_gpu() -> None:
    assert container(built(resources={"gpusPerNode": 0}))["resources"] == {}


def test_shared_memory_has_the_size_that_is_given() -> None:
    assert volumes(built(resources={"sharedMemory": "2Gi"}))["shared-memory"]["emptyDir"] == {
        "medium": "Memory",
        "sizeLimit": "2Gi",
    }
    assert volumes(built())["shared-memory"]["emptyDir"] == {"medium": "Memory"}


def test_scratch_space_is_limited_by_the_administrator_and_not_requested() -> None:
    template = built(replace(SETTINGS, ephemeral_storage="3Gi"))
    assert volumes(template)["scratch"] == {"emptyDir": {"sizeLimit": "3Gi"}}
    assert "requests" not in container(template)["resources"]


def test_a_job_may_ask_the_node_for_more_scratch_space() -> None:
    template = built(replace(SETTINGS, ephemeral_storage="3Gi"), resources={"ephemeralStorage": "200Gi"})
    assert volumes(template)["scratch"] == {"emptyDir": {"sizeLimit": "200Gi"}}
    assert container(template)["resources"]["requests"] == {"ephemeral-storage": "200Gi"}


@pytest.mark.security(11)
def test_what_a_user_may_shape_is_in_the_pod() -> None:
    pod = {
        "nodeSelector": {"example.com/zone": "a"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "labels": {"team": "research"},
        "priorityClassName": "high",
    }
    template = built(pod=pod)
    assert template["spec"]["nodeSelector"] == {"example.com/zone": "a"}
    assert template["spec"]["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    assert template["spec"]["priorityClassName"] == "high"
    assert template["metadata"]["labels"] == {"team": "research", **names.labels("router")}


@pytest.mark.security(11)
def test_a_users_label_cannot_replace_one_of_ours() -> None:
    with pytest.raises(ValidationError, match="are not for users"):
        built(pod={"labels": {"app.kubernetes.io/managed-by": "me"}})


SPOT = {"key": "spot", "operator": "Exists"}
POOL = Toleration(key="sku", value="gpu", effect=TaintEffect.NO_SCHEDULE)
ON_GPU_NODES = replace(SETTINGS, gpu_runtime_class_name="nvidia", gpu_tolerations=(POOL,))


def test_pods_with_gpus_tolerate_what_the_administrator_taints_gpu_nodes_with() -> None:
    template = built(ON_GPU_NODES, pod={"tolerations": [SPOT, POOL.to_json()]}, resources={"gpusPerNode": 2})
    assert template["spec"]["tolerations"] == [SPOT, POOL.to_json()]
    assert built(ON_GPU_NODES)["spec"]["tolerations"] == [POOL.to_json()]
    assert built(ON_GPU_NODES)["spec"]["runtimeClassName"] == "nvidia"


def test_pods_without_gpus_stay_off_gpu_nodes() -> None:
    spec = built(ON_GPU_NODES, resources={"gpusPerNode": 0})["spec"]
    assert not {"tolerations", "runtimeClassName"} & spec.keys()
    spec = built(ON_GPU_NODES, pod={"tolerations": [SPOT]}, resources={"gpusPerNode": 0})["spec"]
    assert spec["tolerations"] == [SPOT]


def test_without_a_runtime_class_the_clusters_default_is_taken() -> None:
    assert "runtimeClassName" not in built(replace(ON_GPU_NODES, gpu_runtime_class_name=""))["spec"]


@pytest.mark.security(1)
def test_a_cluster_that_chooses_the_user_finds_none_in_the_pod() -> None:
    fixed, free = built(), built(replace(SETTINGS, fixed_user=False))
    for field in USER_FIELDS:
        del fixed["spec"]["securityContext"][field]
    assert free == fixed


def test_there_are_as_many_threads_as_requested_cores() -> None:
    """The kubelet rounds up."""
    requested = environment(built(resources={"cpu": "1500m", "gpusPerNode": 0}))
    assert requested["OMP_NUM_THREADS"] == {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert "OMP_NUM_THREADS" not in environment(built())


@pytest.mark.security(10)
def test_variables_come_from_secrets_by_name() -> None:
    secret = {"name": "HF_TOKEN", "secret": "hub", "key": "token"}
    assert environment(built(pod={"envFromSecrets": [secret]}))["HF_TOKEN"] == {
        "secretKeyRef": {"name": "hub", "key": "token"}
    }


@pytest.mark.security(10)
def test_a_secret_cannot_replace_a_variable_of_ours() -> None:
    secret = {"name": "KUBEFLOW_TRAINER_SERVER_TOKEN", "secret": "mine", "key": "x"}
    template = built(REPORTING, pod={"envFromSecrets": [secret]})
    assert [entry for entry in container(template)["env"] if "valueFrom" in entry] == []


def test_with_a_progress_server_the_pod_gets_its_url_a_token_for_it_and_its_authority() -> None:
    template = built(REPORTING)
    found = environment(template)
    assert found["KUBEFLOW_TRAINER_SERVER_URL"] == "https://progress.example:8443/v1/team-a/router"
    assert found["KUBEFLOW_TRAINER_SERVER_TOKEN"] == "/var/run/finetune/token"
    assert found["KUBEFLOW_TRAINER_SERVER_CA_CERT"] == "/var/run/finetune/ca.crt"
    token, authority = volumes(template)["progress"]["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == "finetune-operator.io/progress"
    [item] = authority["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{names.PROGRESS_CA_ANNOTATION}']"
    assert template["metadata"]["annotations"][names.PROGRESS_CA_ANNOTATION] == "PEM"


def test_without_an_authority_of_its_own_the_systems_verify_the_progress_server() -> None:
    template = built(replace(REPORTING, progress_ca=""))
    assert "KUBEFLOW_TRAINER_SERVER_CA_CERT" not in environment(template)
    assert len(volumes(template)["progress"]["projected"]["sources"]) == 1


def test_without_a_progress_server_nothing_of_it_is_in_the_pod() -> None:
    assert "KUBEFLOW" not in json.dumps(built(replace(REPORTING, progress_url="")))


def test_nodes_of_a_job_share_a_subdomain_and_meet_at_the_first_of_them() -> None:
    template = built(resources={"nodes": 2}, output={"uri": "pvc://models/router"})
    assert template["spec"]["subdomain"] == "router-u1"
    found = environment(template)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("router-0.router-u1", "29500")


def test_one_node_meets_nobody() -> None:
    assert "subdomain" not in built()["spec"]
    assert not {"MASTER_ADDR", "MASTER_PORT"} & environment(built()).keys()


def test_the_image_is_the_administrators() -> None:
    trainer = container(built(replace(SETTINGS, trainer_image="mirror/trainer:2", image_pull_policy="Never")))
    assert (trainer["image"], trainer["imagePullPolicy"]) == ("mirror/trainer:2", "Never")
