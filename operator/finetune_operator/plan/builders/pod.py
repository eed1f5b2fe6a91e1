"""Builds the training pod's template: closed, and within the restricted Pod Security Standard."""

from __future__ import annotations

from typing import Any

from finetune_api.run import Run
from finetune_operator.plan import names
from finetune_operator.plan.settings import PodSettings

_TOKEN_SECONDS = 3600
_GRACE_SECONDS = 120  # enough to finish a step and save a checkpoint
_USER_ID = 65532


def build_pod_template(run: Run, settings: PodSettings) -> dict[str, Any]:
    """The template. What a user may shape is in spec.pod and spec.resources; everything else is fixed here."""
    pod = run.spec.pod
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            **(dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), _USER_ID) if settings.fixed_user else {}),
            # Without this every file of a large volume is chowned at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(run, settings)],
        "volumes": _volumes(run, settings),
    }
    if run.spec.resources.nodes > 1:
        spec["subdomain"] = names.service_name(run.name, run.uid)
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if tolerations := _tolerations(run, settings):
        spec["tolerations"] = tolerations
    if run.has_gpus and settings.gpu_runtime_class_name:
        spec["runtimeClassName"] = settings.gpu_runtime_class_name
    if pod.priority_class_name:
        spec["priorityClassName"] = pod.priority_class_name
    # The user's labels come first, so that they cannot replace those that we select by.
    metadata = {"labels": {**pod.labels, **names.labels(run.name)}, "annotations": _annotations(run, settings)}
    return {"metadata": metadata, "spec": spec}


def _tolerations(run: Run, settings: PodSettings) -> list[dict[str, Any]]:
    of_gpus = settings.gpu_tolerations if run.has_gpus else ()
    return [each.to_json() for each in dict.fromkeys((*run.spec.pod.tolerations, *of_gpus))]


def _annotations(run: Run, settings: PodSettings) -> dict[str, str]:
    """What the container reads as files: the pod carries its run with it, so that no second object can be missing."""
    annotations = {names.RUN_ANNOTATION: run.model_dump_json(by_alias=True, exclude_none=True)}
    if settings.progress_url and settings.progress_ca:
        annotations[names.PROGRESS_CA_ANNOTATION] = settings.progress_ca
    return annotations


def _container(run: Run, settings: PodSettings) -> dict[str, Any]:
    return {
        "name": names.CONTAINER,
        "image": settings.trainer_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "finetune_trainer", f"{names.RUN_MOUNT}/{names.RUN_FILE}"],
        "env": _environment(run, settings),
        "resources": _resources(run),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(run, settings),
    }


def _environment(run: Run, settings: PodSettings) -> list[dict[str, Any]]:
    fixed = {
        "HOME": names.SCRATCH_MOUNT,
        "HF_HOME": f"{names.SCRATCH_MOUNT}/huggingface",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TERMINATION_MESSAGE_PATH": "/dev/termination-log",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if run.spec.resources.nodes > 1:
        fixed |= {
            "MASTER_ADDR": names.first_address(run.name, run.uid),
            "MASTER_PORT": str(names.RENDEZVOUS_PORT),
        }
    if settings.progress_url:
        fixed |= {
            "KUBEFLOW_TRAINER_SERVER_URL": f"{settings.progress_url}/v1/{run.namespace}/{run.name}",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{names.PROGRESS_MOUNT}/token",
        }
    if settings.progress_url and settings.progress_ca:  # else the system's authorities verify it
        fixed["KUBEFLOW_TRAINER_SERVER_CA_CERT"] = f"{names.PROGRESS_MOUNT}/ca.crt"
    threads = []
    if run.spec.resources.cpu:
        # Threads that wait for each other are very slow where other pods want the cores that were not asked for.
        threads.append({"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}})
    secrets = [
        {"name": entry.name, "valueFrom": {"secretKeyRef": {"name": entry.secret, "key": entry.key}}}
        for entry in run.spec.pod.env_from_secrets
        if entry.name not in fixed  # a secret cannot redirect what the pod's contract rests on
    ]
    return [{"name": name, "value": value} for name, value in fixed.items()] + threads + secrets


def _resources(run: Run) -> dict[str, Any]:
    resources = run.spec.resources
    asked = {"cpu": resources.cpu, "memory": resources.memory, "ephemeral-storage": resources.ephemeral_storage}
    requests = {name: value for name, value in asked.items() if value}
    limits = {"memory": resources.memory} if resources.memory else {}
    if resources.gpus_per_node:
        limits[resources.gpu_resource_name] = str(resources.gpus_per_node)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _volumes(run: Run, settings: PodSettings) -> list[dict[str, Any]]:
    # The limit is the volume's: one of the container's would count its log too.
    scratch_size = run.spec.resources.ephemeral_storage or settings.ephemeral_storage
    volumes: list[dict[str, Any]] = [
        {"name": "run", "downwardAPI": {"items": [_annotation_file(names.RUN_FILE, names.RUN_ANNOTATION)]}},
        {"name": "scratch", "emptyDir": {"sizeLimit": scratch_size}},
    ]
    shared_memory: dict[str, Any] = {"medium": "Memory"}
    if run.spec.resources.shared_memory:
        shared_memory["sizeLimit"] = run.spec.resources.shared_memory
    volumes.append({"name": "shared-memory", "emptyDir": shared_memory})
    for number, (claim, writable) in enumerate(names.claims(run.spec).items()):
        source = {"claimName": claim} if writable else {"claimName": claim, "readOnly": True}
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": source})
    if settings.progress_url:
        token = {"path": "token", "audience": names.PROGRESS_AUDIENCE, "expirationSeconds": _TOKEN_SECONDS}
        sources: list[dict[str, Any]] = [{"serviceAccountToken": token}]
        if settings.progress_ca:
            authority = {"items": [_annotation_file("ca.crt", names.PROGRESS_CA_ANNOTATION)]}
            sources.append({"downwardAPI": authority})
        volumes.append({"name": "progress", "projected": {"sources": sources}})
    return volumes


def _annotation_file(path: str, annotation: str) -> dict[str, Any]:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}


def _mounts(run: Run, settings: PodSettings) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "run", "mountPath": names.RUN_MOUNT, "readOnly": True},
        {"name": "scratch", "mountPath": names.SCRATCH_MOUNT},
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - shared memory of the pod
    ]
    for number, (claim, writable) in enumerate(names.claims(run.spec).items()):
        mount: dict[str, Any] = {"name": f"claim-{number}", "mountPath": names.claim_path(claim)}
        mounts.append(mount if writable else {**mount, "readOnly": True})
    if settings.progress_url:
        mounts.append({"name": "progress", "mountPath": names.PROGRESS_MOUNT, "readOnly": True})
    return mounts
