"""A plain Hugging Face `Trainer` script reports to the operator with no code of ours: only by its pod's environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_operator.plan.names import PROGRESS_CA_ANNOTATION, PROGRESS_MOUNT
from operator_jobs import AUDIENCE, job, pod_token
from testbed.client import Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCRIPT = Path(__file__).resolve().parents[1] / "plain_trainer.py"
STEPS = 30
"""Long enough in all for a report between the first and the last: transformers sends one in five seconds."""
TRAINING_SECONDS = 240
STATUS_SECONDS = 20
"""A status is written every 15 seconds."""


def project(cluster: Cluster, namespace: Namespace, pod: Object, folder: Path) -> None:
    """Write what the kubelet would into the pod's progress volume, by the pod's own spec."""
    [volume] = [volume for volume in pod["spec"]["volumes"] if volume["name"] == "progress"]
    for source in volume["projected"]["sources"]:
        if token := source.get("serviceAccountToken"):
            assert token["audience"] == AUDIENCE
            (folder / token["path"]).write_text(pod_token(cluster, namespace, pod, token["audience"]))
        for item in source.get("downwardAPI", {}).get("items", ()):
            assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{PROGRESS_CA_ANNOTATION}']"
            (folder / item["path"]).write_text(pod["metadata"]["annotations"][PROGRESS_CA_ANNOTATION])


def environment_of(pod: Object, folder: Path) -> dict[str, str]:
    """The container's variables, with the volume's place on this machine."""
    [container] = pod["spec"]["containers"]
    [mount] = [mount for mount in container["volumeMounts"] if mount["name"] == "progress"]
    assert mount["mountPath"] == PROGRESS_MOUNT
    given = {entry["name"]: entry["value"] for entry in container["env"] if entry["name"].startswith("KUBEFLOW_")}
    kubeflow = {name: value.replace(PROGRESS_MOUNT, str(folder)) for name, value in given.items()}
    assert set(kubeflow) == {f"KUBEFLOW_TRAINER_SERVER_{what}" for what in ("URL", "TOKEN", "CA_CERT")}
    proxies = {"NO_PROXY": "*", "no_proxy": "*"}  # a pod has no proxy to the operator
    return {**os.environ, **kubeflow, **proxies, "HF_HUB_OFFLINE": "1"}


def test_plain_trainer_shows_its_progress_and_its_loss(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess, tmp_path: Path
) -> None:
    namespace.apply(job(), "plain")
    pod = namespace.bound_pod("plain")
    cluster.kubelet.run(pod)
    namespace.until("plain", "Running")
    project(cluster, namespace, pod, tmp_path)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "output"), str(STEPS)]
    seen: set[float] = set()
    with subprocess.Popen(
        command, env=environment_of(pod, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as training:

        def has_ended() -> bool:
            seen.add(operator.metric("finetune_job_steps_done", namespace=namespace.name))
            return training.poll() is not None

        eventually(has_ended, "the end of training", TRAINING_SECONDS)
        assert training.returncode == 0, training.stdout and training.stdout.read()
    assert [step for step in seen if 0 < step < STEPS], "a report between the first and the last"
    assert 0.0 < operator.metric("finetune_job_loss", namespace=namespace.name) < 10.0
    assert operator.metric("finetune_progress_reports_total") >= 3

    def final() -> Object | None:
        progress: Object = namespace.job("plain").get("status", {}).get("progress", {})
        return progress if progress.get("percent") == 100 else None

    progress = eventually(final, "the last report in the status", STATUS_SECONDS)
    assert (progress["step"], progress["totalSteps"], progress["etaSeconds"]) == (STEPS, STEPS, 0)
    assert 0.0 < float(progress["loss"]) < 10.0
