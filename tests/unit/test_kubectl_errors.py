"""What the kubectl plugin says when the cluster cannot answer: the cause, and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from finetune_cli.kubectl import main as command
from finetune_cli.kubectl.cluster import _refused

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
    assert "kubectl finetune: no cluster: " in capsys.readouterr().err


def test_a_context_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text('{"apiVersion": "v1", "kind": "Config", "current-context": "", "contexts": []}')
    assert command.main(["list", "--kubeconfig", str(file), "--context", "prod"]) == 1
    assert "prod" in capsys.readouterr().err


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
