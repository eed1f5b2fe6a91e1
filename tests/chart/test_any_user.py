"""The operator works as whatever user a cluster chooses, and writes nothing."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from any_user import as_any_user
from testbed.apiserver import ApiServer
from testbed.client import eventually
from testbed.operator_process import install_crd
from testbed.processes import HOST, ServerProcess, free_port

pytestmark = pytest.mark.integration


def test_a_user_without_a_name_operates(api_server: ApiServer, tmp_path: Path) -> None:
    install_crd(api_server)
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/",  # as container runtimes have it for a user whom the image does not name
        "KUBECONFIG": str(api_server.kubeconfig),
        "FINETUNE_TRAINER_IMAGE": "trainer:test",
        "FINETUNE_FIXED_USER": "false",
        "FINETUNE_OPERATOR_NAMESPACE": "default",
        "FINETUNE_HTTP_PORT": str(port),
    }
    command = as_any_user([sys.executable, "-m", "finetune_operator"])
    process = ServerProcess("operator", command, tmp_path, environment)

    def is_ready() -> bool:
        assert process.exit_status() is None, process.log_tail()
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    with process.running():
        eventually(is_ready, "the operator is ready", 60)
    assert [path.name for path in tmp_path.iterdir()] == ["operator.log"]
