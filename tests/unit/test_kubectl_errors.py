"""What the kubectl plugin says when the cluster cannot answer: the cause, and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kubernetes.config import incluster_config

from finetune_cli.kubectl import main as command
from finetune_cli.kubectl.cluster import Cluster, _refused
from finetune_cli.kubectl.kubeconfig import NoCluster, find_cluster

JOBS = "/apis/finetune-operator.io/v1alpha1/finetunejobs"
PODS = "/api/v1/namespaces/team/pods"


@pytest.mark.parametrize(
    ("path", "status", "body", "message"),
    [
        (JOBS, 404, b"404 page not found\n", "has no FineTuneJobs: the CRD"),
        (PODS, 403, b'{"message": "pods is forbidden"}', "may not do this: pods is forbidden"),
        (PODS, 401, b'{"message": "Unauthorized"}', "does not accept your credentials; log in"),
        (f"{PODS}/a/log", 400, b'{"message": "container is waiting"}', "container is waiting"),
        (PODS, 502, b"<html>", "<html>"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(path: str, status: int, body: bytes, message: str) -> None:
    assert message in str(_refused(path, status, body))


def test_without_a_kubeconfig_it_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["list", "--kubeconfig", str(tmp_path / "absent")]) == 1
    assert f"kubectl finetune: no cluster: there is no kubeconfig at {tmp_path / 'absent'}; " in capsys.readouterr().err


def test_an_empty_kubeconfig_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").write_text(Path(kubeconfig(tmp_path, **{"current-context": "other"})).read_text())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", "")
    assert Cluster.connect(None, None).namespace == "team-b"


@pytest.fixture
def in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What Kubernetes gives to a pod, and no kubeconfig."""
    for name, content in (("token", "t0ken"), ("ca.crt", "-"), ("namespace", "team-p")):
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    return tmp_path


@pytest.mark.usefixtures("in_a_pod")
def test_a_pod_without_a_kubeconfig_is_in_its_cluster() -> None:
    found, namespace = find_cluster(None, None)
    assert (found.host, namespace) == ("https://10.0.0.1:443", "team-p")
    assert found.get_api_key_with_prefix("BearerToken") == "bearer t0ken"


def test_what_is_asked_for_is_not_replaced_by_the_pods_cluster(in_a_pod: Path) -> None:
    for asked in (("/absent", None), (None, "prod")):
        with pytest.raises(NoCluster, match="there is no kubeconfig at "):
            find_cluster(*asked)
    file = kubeconfig(in_a_pod, **{"current-context": "other"})
    assert find_cluster(file, None)[1] == "team-b"


def test_nowhere_at_all_is_said(in_a_pod: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_a_pod / "token").unlink()
    assert command.main(["list"]) == 1
    assert "there is no kubeconfig at ~/.kube/config, and this is no pod with" in capsys.readouterr().err


def test_a_file_that_is_no_text_is_no_kubeconfig(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_bytes("# für mich\n".encode("latin-1"))
    assert command.main(["list", "--kubeconfig", str(file)]) == 1
    assert f"{file} is no kubeconfig" in capsys.readouterr().err


def test_a_context_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text('{"apiVersion": "v1", "kind": "Config", "current-context": "", "contexts": []}')
    assert command.main(["list", "--kubeconfig", str(file), "--context", "prod"]) == 1
    assert "prod" in capsys.readouterr().err


PROD = {
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "u", "user": {"token": "x"}}],
    "contexts": [
        {"name": "other", "context": {"cluster": "c", "user": "u", "namespace": "team-b"}},
        {"name": "prod", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}},
        {"name": "bare", "context": {"cluster": "c", "user": "u"}},
    ],
}


def kubeconfig(folder: Path, **more: object) -> str:
    file = folder / "kubeconfig"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **PROD, **more}))
    return str(file)


@pytest.mark.parametrize(
    "current", [{}, {"current-context": ""}, {"current-context": "gone"}, {"current-context": "other"}]
)
def test_only_the_context_that_is_chosen_has_to_be_there(tmp_path: Path, current: dict[str, str]) -> None:
    file = kubeconfig(tmp_path, **current)
    assert Cluster.connect(file, "prod").namespace == "team-a"
    assert Cluster.connect(file, "bare").namespace == "default"


def test_without_a_choice_the_current_context_is_taken(tmp_path: Path) -> None:
    assert Cluster.connect(kubeconfig(tmp_path, **{"current-context": "other"}), None).namespace == "team-b"


@pytest.mark.parametrize("content", ["{", "", "- a\n", "contexts: [{name: prod, context: }]"])
def test_a_file_that_is_no_kubeconfig_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(content)
    assert command.main(["list", "--kubeconfig", str(file), "--context", "prod"]) == 1
    assert "kubectl finetune: no cluster: " in capsys.readouterr().err


WHERE = ["-n", "team-c", "--context", "prod", "--kubeconfig"]


@pytest.mark.parametrize("before", [True, False])
def test_where_to_look_may_stand_before_the_command_and_after_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "jobs", lambda cluster, namespace: [])
    where = [*WHERE, kubeconfig(tmp_path)]
    assert command.main([*where, "list"] if before else ["list", *where]) == 0
    assert capsys.readouterr().out == "no FineTuneJobs in namespace team-c\n"


def test_what_stands_after_the_command_is_the_last_word(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "jobs", lambda cluster, namespace: [])
    assert command.main([*WHERE, kubeconfig(tmp_path), "list", "-n", "team-d"]) == 0
    assert "namespace team-d" in capsys.readouterr().out


def test_finetune_run_needs_no_kubernetes() -> None:
    code = "import sys, finetune_cli.main, finetune_cli.run; print('kubernetes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
