"""The relay: it lets through what reaches the leader, and never sends a report round in circles."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from certificate_pairs import make_pair, needs_openssl
from finetune_operator.host.leader import address_in, make_identity
from finetune_operator.host.settings import OperatorSettings, from_environment
from finetune_operator.progress.relay import Relay
from finetune_operator.progress.sources import RELAYED_BURST

PATH = "/v1/team/job"


def post(*, acts: bool, leader: str, path: str = PATH, **headers: str) -> tuple[int, str, str | None]:
    """Post to a replica; returns status, text, and when to come again."""

    async def taken(request: web.Request) -> web.Response:
        return web.Response(text="taken")

    async def run() -> tuple[int, str, str | None]:
        relay = Relay(lambda: acts, lambda: leader, ssl.create_default_context, "progress.example")
        app = web.Application(middlewares=[relay.middleware()])
        app.add_routes([web.post("/v1/{namespace}/{name}", taken)])
        async with TestClient(TestServer(app)) as client:
            answer = await client.post(path, data=b"{}", headers=headers)
            return answer.status, await answer.text(), answer.headers.get("Retry-After")

    return asyncio.run(run())


def test_replica_that_acts_takes_the_report_itself() -> None:
    assert post(acts=True, leader="127.0.0.1:1")[:2] == (200, "taken")


def test_without_a_leader_the_sender_is_told_when_to_come_again() -> None:
    status, said, again = post(acts=False, leader="")
    assert (status, again) == (503, "5")
    assert "no replica leads now" in said


def test_report_that_was_relayed_once_is_not_relayed_again() -> None:
    status, said, _ = post(acts=False, leader="127.0.0.1:1", **{"Finetune-Relayed": "1"})
    assert (status, "no replica leads now" in said) == (503, True)


def test_leader_that_does_not_answer_is_not_waited_for() -> None:
    status, said, again = post(acts=False, leader="127.0.0.1:1")
    assert (status, again) == (503, "5")
    assert "does not answer" in said


def test_path_that_is_not_the_protocols_is_not_relayed() -> None:
    assert post(acts=False, leader="127.0.0.1:1", path="/v2/team/job")[0] == 404


@pytest.mark.parametrize("address", ["10.0.0.7:8443", "[fd00::7]:8443", ""])
def test_address_is_read_back_from_the_identity(address: str) -> None:
    assert address_in(make_identity("finetune-operator-5d4f", address)) == address


@pytest.mark.parametrize(
    ("pod_ip", "certificate", "address"),
    [
        ("10.0.0.7", "tls.crt", "10.0.0.7:8443"),
        ("fd00::7", "tls.crt", "[fd00::7]:8443"),
        ("", "tls.crt", ""),
        ("10.0.0.7", "", ""),
    ],
)
def test_address_is_told_where_there_is_a_progress_server(pod_ip: str, certificate: str, address: str) -> None:
    given = {"FINETUNE_TRAINER_IMAGE": "trainer", "FINETUNE_POD_IP": pod_ip}
    if certificate:
        given |= {"FINETUNE_PROGRESS_CERTIFICATE": certificate, "FINETUNE_PROGRESS_KEY": "tls.key"}
    settings: OperatorSettings = from_environment(given)
    assert settings.progress_address() == address


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Both sides' contexts for a new certificate of localhost."""
    make_pair(folder)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return server, ssl.create_default_context(cafile=folder / "tls.crt")


@needs_openssl
def test_who_sends_bad_tokens_is_not_passed_on_for_ever_and_others_are(tmp_path: Path) -> None:
    """The leader sees the relay's address for all senders: none of them may use up what it lets through."""
    tokens: list[str] = []

    async def judge(request: web.Request) -> web.Response:
        tokens.append(request.headers["Authorization"])
        return web.Response(status=200 if tokens[-1] == "Bearer good" else 401)

    async def run() -> list[int]:
        leader = web.Application()
        leader.add_routes([web.post("/v1/{namespace}/{name}", judge)])
        server_side, client_side = certificate(tmp_path)
        there = TestServer(leader, scheme="https")
        await there.start_server(ssl=server_side)
        async with there:
            relay = Relay(lambda: False, lambda: f"127.0.0.1:{there.port}", lambda: client_side, "localhost")
            app = web.Application(middlewares=[relay.middleware()])
            app.add_routes([web.post("/v1/{namespace}/{name}", judge)])
            async with TestClient(TestServer(app)) as client:
                bearers = [*["good"] * 30, *[f"bad-{number}" for number in range(30)]]
                return [
                    (await client.post(PATH, data=b"{}", headers={"Authorization": f"Bearer {bearer}"})).status
                    for bearer in bearers
                ]

    codes = asyncio.run(run())
    assert codes[:30] == [200] * 30
    assert codes[30:].count(401) == RELAYED_BURST
    assert codes[30:].count(429) == 30 - RELAYED_BURST
    assert len(tokens) == 30 + RELAYED_BURST
