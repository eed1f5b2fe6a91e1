"""What the kubectl plugin says when the cluster cannot answer: the cause, and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_cli.kubectl import main as command
from finetune_cli.kubectl.cluster import Cluster, _refused

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


def test_without_its_packages_it_says_how_to_get_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert command.main(["list"]) == 1
    said = capsys.readouterr().err
    assert "pip install '.[cli]'" in said
    assert "pip install 'finetune-operator" not in said, "it is not on PyPI, where anybody could take the name"


def test_finetune_run_needs_no_kubernetes() -> None:
    code = "import sys, finetune_cli.main, finetune_cli.run; print('kubernetes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
