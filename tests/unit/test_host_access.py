"""Who may read the metrics: over real HTTP, with an API server that answers as it is told. TLS holds little at once."""

from __future__ import annotations

import asyncio
import ssl
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from certificate_pairs import make_pair, needs_openssl
from finetune_operator.cluster.client import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS, ClusterError, Refused, Resource
from finetune_operator.host.access import make_reviewer, readers_only
from finetune_operator.host.http import make_app, metrics_routes, served
from finetune_operator.progress.sources import REVIEWS_BURST
from testbed.processes import free_port

Client = TestClient[web.Request, web.Application]
NAME = "system:serviceaccount:monitoring:prometheus"
USER = {"username": NAME, "uid": "a-uid", "groups": ["system:serviceaccounts"], "extra": {"key": ["value"]}}
READER, STRANGER, OUTAGE = "reader", "stranger", "outage"


class ApiServer:
    """Knows two users, and lets one of them read."""

    def __init__(self) -> None:
        self.asked: list[tuple[Resource, Mapping[str, Any]]] = []
        self.failure: ClusterError | None = None

    async def post(self, resource: Resource, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append((resource, body["spec"]))
        if self.failure is not None:
            raise self.failure
        if resource == TOKEN_REVIEWS:
            token = body["spec"]["token"]
            user = {READER: USER, STRANGER: {**USER, "username": "stranger"}}.get(token)
            return {"status": {"authenticated": user is not None, **({"user": user} if user else {})}}
        assert resource == SUBJECT_ACCESS_REVIEWS
        return {"status": {"allowed": body["spec"]["user"] == NAME}}


class Bed:
    """The metrics behind such an API server."""

    def __init__(self) -> None:
        self.api = ApiServer()
        self.registry = CollectorRegistry()
        self.app = make_app(metrics_routes(self.registry), [readers_only(make_reviewer(self.api))])

    def run(self, test: Callable[[Client], Awaitable[None]]) -> None:
        async def main() -> None:
            async with TestClient(TestServer(self.app)) as client:
                await test(client)

        asyncio.run(main())

    def ask(self, *headers: Mapping[str, str], method: str = "GET", path: str = "/metrics") -> list[tuple[int, str]]:
        """An answer's status and text for each."""
        answers = []

        async def test(client: Client) -> None:
            for each in headers:
                async with client.request(method, path, headers=each) as answer:
                    answers.append((answer.status, await answer.text()))

        self.run(test)
        return answers


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_who_may_get_the_path_is_let_through_and_the_api_server_is_asked_with_all_it_knows_of_the_user() -> None:
    bed = Bed()
    assert bed.ask(bearer(READER)) == [(200, "")]
    assert bed.api.asked == [
        (TOKEN_REVIEWS, {"token": READER}),
        (
            SUBJECT_ACCESS_REVIEWS,
            {
                "user": NAME,
                "uid": "a-uid",
                "groups": ["system:serviceaccounts"],
                "extra": {"key": ["value"]},
                "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
            },
        ),
    ]


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": ""}, {"Authorization": "Basic x"}, bearer(""), bearer("unknown")], ids=str
)
def test_without_a_valid_token_the_answer_says_what_is_needed(headers: dict[str, str]) -> None:
    [(status, text)] = Bed().ask(headers)
    assert (status, text) == (401, "a bearer token that is valid for the API server is needed\n")


@pytest.mark.parametrize(("method", "path"), [("GET", "/metrics"), ("HEAD", "/metrics"), ("GET", "/other")])
def test_nothing_is_told_to_who_has_no_right(method: str, path: str) -> None:
    bed = Bed()
    [(without, _), (forbidden, text)] = bed.ask({}, bearer(STRANGER), method=method, path=path)
    assert (without, forbidden) == (401, 403)
    assert method == "HEAD" or text == "stranger may not get the nonResourceURL /metrics\n"


def test_answers_are_remembered_the_bad_ones_too() -> None:
    bed = Bed()
    codes = [code for code, _ in bed.ask(*[bearer(token) for token in (READER, STRANGER, "unknown") for _ in range(5)])]
    assert codes == [200] * 5 + [403] * 5 + [401] * 5
    assert len(bed.api.asked) == 2 + 2 + 1


@pytest.mark.parametrize("failure", [ClusterError("no answer"), Refused("subjectaccessreviews is forbidden")], ids=str)
def test_when_the_api_server_cannot_judge_nobody_reads_and_nothing_is_remembered(
    failure: ClusterError, caplog: pytest.LogCaptureFixture
) -> None:
    bed = Bed()
    bed.api.failure = failure
    assert bed.ask(bearer(READER)) == [(503, "the token cannot be checked now\n")]
    assert ("subjectaccessreviews is forbidden" in caplog.text) == isinstance(failure, Refused)
    again = Bed()
    again.api.failure = failure

    async def test(client: Client) -> None:
        assert (await client.get("/metrics", headers=bearer(READER))).status == 503
        again.api.failure = None
        assert (await client.get("/metrics", headers=bearer(READER))).status == 200

    again.run(test)


def test_bad_tokens_of_one_address_cost_the_api_server_little() -> None:
    bed = Bed()
    codes = [code for code, _ in bed.ask(*[bearer(f"junk-{number}") for number in range(200)])]
    assert codes.count(401) >= REVIEWS_BURST
    assert codes.count(429) >= 100
    assert len(bed.api.asked) == codes.count(401)


class Many(Collector):
    """More samples than should be in memory at once: each is made when it is asked for."""

    def collect(self) -> Iterator[Metric]:
        family = Metric("size", "Large.", "gauge")
        family.samples = (Sample("size", {"number": f"{number:0200}"}, 1.0) for number in range(30_000))  # type: ignore[assignment]
        yield family


@needs_openssl
def test_a_scrape_over_tls_is_never_in_memory_at_once_though_it_is_read_slowly(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(pair / "tls.crt", pair / "tls.key")
    client_side = ssl.create_default_context(cafile=pair / "tls.crt")
    bed = Bed()
    bed.registry.register(Many())

    async def read(port: int) -> int:
        to = {"host": "127.0.0.1", "port": port, "server_hostname": "localhost"}
        reader, writer = await asyncio.open_connection(**to, ssl=client_side, limit=2**14)
        headers = "".join(f"{name}: {value}\r\n" for name, value in bearer(READER).items())
        writer.write(f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n".encode())
        await asyncio.sleep(1)  # as much as it may is written now
        size = 0
        while piece := await reader.read(2**16):
            size += len(piece)
        writer.close()
        return size

    async def main() -> int:
        async with served(bed.app, port := free_port(), server_side):
            return await read(port)

    tracemalloc.start()
    size = asyncio.run(main())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 6_000_000
    assert peak < 2_500_000
