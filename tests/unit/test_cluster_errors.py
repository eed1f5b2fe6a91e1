"""What the API server answers is sorted by what to do about it: through the real client, from a server that says it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes.aio import client

from finetune_operator.cluster.client import (
    CLAIMS,
    AlreadyThere,
    ClusterError,
    Conflict,
    Gone,
    Refused,
    Unreached,
    WebhookFailed,
)
from finetune_operator.cluster.kubernetes_client import KubernetesCluster

CROSSED = 'Operation cannot be fulfilled on resourcequotas "team": the object has been modified'


@contextmanager
def server(code: int, body: bytes) -> Iterator[str]:
    """A server that answers everything alike; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()


def refusal_of_a_creation(code: int, body: bytes) -> ClusterError:
    async def create(url: str) -> None:
        async with client.ApiClient(client.Configuration(host=url)) as api:
            await KubernetesCluster(api).create(CLAIMS, "team-a", {"kind": "PersistentVolumeClaim"})

    with server(code, body) as url, pytest.raises(ClusterError) as refused:
        asyncio.run(create(url))
    return refused.value


def status(reason: str, message: str) -> bytes:
    return json.dumps({"kind": "Status", "reason": reason, "message": message}).encode()


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (409, "AlreadyExists", AlreadyThere),
        (409, "Conflict", Conflict),
        (403, "Forbidden", Refused),
        (422, "Invalid", Refused),
        (404, "NotFound", Gone),
        (500, "InternalError", ClusterError),
        (429, "TooManyRequests", Unreached),
        (503, "ServiceUnavailable", Unreached),
        (504, "Timeout", Unreached),
    ],
)
def test_an_answer_is_sorted_by_its_reason_and_told_in_its_words(
    code: int, reason: str, kind: type[ClusterError]
) -> None:
    error = refusal_of_a_creation(code, status(reason, CROSSED))
    assert (type(error), str(error)) == (kind, CROSSED)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("etcdserver: request timed out", Unreached),
        ("context deadline exceeded", Unreached),
        ('Internal error occurred: failed calling webhook "a.b": context deadline exceeded', WebhookFailed),
    ],
)
def test_of_an_internal_error_the_words_tell_whether_it_passes(words: str, kind: type[ClusterError]) -> None:
    assert type(refusal_of_a_creation(500, status("InternalError", words))) is kind


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[]", b"null", b'{"message": 1}', b"\xff\xfe"])
def test_an_answer_that_is_no_status_is_told_too(body: bytes) -> None:
    error = refusal_of_a_creation(502, body)
    assert type(error) is Unreached
    assert str(error)
