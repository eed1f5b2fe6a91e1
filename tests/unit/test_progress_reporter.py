"""The trainer's reporter: asked for by Kubeflow's variables, and never a reason for training to fail."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from certificate_pairs import make_pair, needs_openssl
from finetune_trainer.reporter import Reporter, from_environment
from plan_builders import make_progress
from testbed.client import eventually

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
    eventually(lambda: "the report was not taken" in caplog.text, "a report that is not taken")
    reporter.update(make_progress(2))
    reporter.close()
    assert "the report was not taken" in caplog.text
    assert "a-very-secret-token" not in caplog.text
    assert "progress-reporter" not in {thread.name for thread in threading.enumerate()}


@contextmanager
def answering(certificate: Path, answers: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """A TLS server that gives these answers in turn, word for word, then the last; its URL, and what it was sent."""
    heard: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.wfile.write(answers[min(len(heard), len(answers)) - 1])

        def do_GET(self) -> None:  # what urllib makes of a redirected POST
            heard.append(b"")
            self.wfile.write(GOOD_ANSWER)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"https://localhost:{server.server_port}/v1/a/b", heard
        server.shutdown()


GOOD_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
NOWHERE = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: https://[nowhere/\r\n\r\n"


@needs_openssl
@pytest.mark.parametrize(
    "answer", [b"hello\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", NOWHERE], ids=["words", "code", "address"]
)
def test_a_strange_answer_does_not_end_the_reports(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answer: bytes
) -> None:
    certificate, token = make_pair(tmp_path / "tls"), tmp_path / "token"
    token.write_text("a-very-secret-token")
    caplog.set_level(logging.DEBUG)
    with answering(certificate, [answer, GOOD_ANSWER]) as (url, heard):
        reporter = Reporter(url, str(certificate / "tls.crt"), str(token), interval=0.01)
        for step in (1, 2):
            reporter.update(make_progress(step))
            deadline = time.monotonic() + 10
            while len(heard) < step and time.monotonic() < deadline:
                time.sleep(0.01)
        reporter.close()
    assert len(heard) > 1
    assert "the report was not" in caplog.text
    assert "a-very-secret-token" not in caplog.text


@needs_openssl
def test_a_token_that_is_not_there_yet_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, token = make_pair(tmp_path / "tls"), tmp_path / "token"
    caplog.set_level(logging.DEBUG)
    with answering(certificate, [GOOD_ANSWER]) as (url, heard):
        reporter = Reporter(url, str(certificate / "tls.crt"), str(token), interval=0.01)
        reporter.update(make_progress(1))
        eventually(lambda: "the report was not" in caplog.text, "a report without a token")
        assert not heard
        token.write_text("a-very-secret-token")
        reporter.update(make_progress(2))
        eventually(lambda: bool(heard), "a report with the token")
        reporter.close()


@needs_openssl
def test_a_token_is_not_sent_where_an_answer_points_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, token = make_pair(tmp_path / "tls"), tmp_path / "token"
    token.write_text("a-very-secret-token")
    caplog.set_level(logging.DEBUG)
    with answering(certificate, [GOOD_ANSWER]) as (elsewhere, strangers):
        found = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {elsewhere}\r\n\r\n".encode()
        with answering(certificate, [found]) as (url, heard):
            reporter = Reporter(url, str(certificate / "tls.crt"), str(token), interval=0.01)
            reporter.update(make_progress(1))
            eventually(lambda: "302" in caplog.text, "an answer that points elsewhere")
            reporter.close()
    assert heard
    assert not strangers
    assert "302" in caplog.text


def test_a_token_that_no_header_takes_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = tmp_path / "token"
    token.write_text("a-very-secret\ntoken")
    caplog.set_level(logging.DEBUG)
    reporter = Reporter("https://127.0.0.1:1/v1/a/b", None, str(token), interval=0.01)
    reporter.update(make_progress(1))
    reporter.close()
    assert "the report was not made: ValueError" in caplog.text
    assert "a-very-secret" not in caplog.text


def test_reporting_needs_no_torch() -> None:
    program = "import sys, finetune_trainer.reporter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
