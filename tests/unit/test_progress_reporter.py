"""The trainer's reporter: asked for by Kubeflow's variables, and never a reason for training to fail."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finetune_trainer.reporter import Reporter, from_environment
from plan_builders import make_progress

URL, TOKEN, CA = (f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "TOKEN", "CA_CERT"))


@pytest.mark.parametrize("environment", [{}, {URL: "https://x"}, {TOKEN: "/token"}, {URL: "", TOKEN: "/token"}])
def test_without_a_server_and_a_token_nothing_is_reported(environment: dict[str, str]) -> None:
    assert from_environment(environment) is None


def test_a_token_is_never_sent_without_tls(caplog: pytest.LogCaptureFixture) -> None:
    assert from_environment({URL: "http://progress.example", TOKEN: "/token"}) is None
    assert "KUBEFLOW_TRAINER_SERVER_URL must be https://, because a token is sent to it" in caplog.text


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_authority_that_cannot_be_read_is_said_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    authority = tmp_path / "ca.crt"
    if content is not None:
        authority.write_text(content)
    assert from_environment({URL: "https://progress.example", TOKEN: "/token", CA: str(authority)}) is None
    assert "progress is not reported" in caplog.text


def test_with_everything_there_is_a_reporter(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    reporter = from_environment({URL: "https://127.0.0.1:1/v1/a/b", TOKEN: str(token)})
    assert reporter is not None
    reporter.close()


def test_a_server_that_is_not_there_blocks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = tmp_path / "token"
    token.write_text("a-very-secret-token")
    caplog.set_level(logging.DEBUG)
    reporter = Reporter("https://127.0.0.1:1/v1/a/b", None, str(token), interval=0.01)
    reporter.update(make_progress(1))
    deadline = time.monotonic() + 10
    while "the report was not taken" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    reporter.update(make_progress(2))
    reporter.close()
    assert "the report was not taken" in caplog.text
    assert "a-very-secret-token" not in caplog.text
    assert "progress-reporter" not in {thread.name for thread in threading.enumerate()}


def test_a_token_that_is_not_there_yet_fails_nothing(tmp_path: Path) -> None:
    reporter = Reporter("https://127.0.0.1:1/v1/a/b", None, str(tmp_path / "token"), interval=0.01)
    reporter.update(make_progress(1))
    reporter.close()


def test_reporting_needs_no_torch() -> None:
    program = "import sys, finetune_trainer.reporter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
