"""Files of web servers: what is read, what is tried again, what is refused in which words; nothing is given away."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificate_pairs import needs_openssl
from finetune_api.exit_codes import ExitCode
from finetune_trainer import stop as stop_flag
from finetune_trainer.errors import TrainerError
from finetune_trainer.remote import https
from finetune_trainer.remote.https import WebFile
from finetune_trainer.stop import StopFlag
from objectstore.server import use
from web_server import Answer, WebServer, serving

pytestmark = needs_openssl

ROWS = b'{"text": "a good film", "label": "good"}\n' * 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    with serving(tmp_path_factory.mktemp("web")) as web:
        yield web


@pytest.fixture
def web(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """The server as if it were on the internet, and clients that do not wait."""
    use(monkeypatch, server.environment())
    monkeypatch.setattr(https, "PAUSES", (0.0, 0.0, 0.0))
    server.requests.clear()
    server.tunnels.clear()
    return server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def download(uri: str, path: Path, version: str = "") -> str | None:
    return WebFile(uri, StopFlag()).download(path, version)


def refused(uri: str, path: Path, code: ExitCode, *words: str) -> None:
    with pytest.raises(TrainerError) as caught:
        download(uri, path)
    assert caught.value.code == code, caught.value.message
    assert caught.value.message.startswith(f"{uri}: ")
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message


def test_a_file_is_read_whole_and_asked_about_when_it_is_here(web: WebServer, path: Path) -> None:
    uri = web.say(
        "/rows.jsonl", Answer(ROWS, headers={"ETag": '"1"', "Last-Modified": "Mon, 02 Nov 2026 08:00:00 GMT"})
    )
    version = download(uri, path)
    assert path.read_bytes() == ROWS
    assert version
    path.unlink()
    assert download(uri, path, version) is None
    assert not path.exists()
    asked = web.requests[-1][1]
    assert asked["if-none-match"] == '"1"'
    assert asked["if-modified-since"] == "Mon, 02 Nov 2026 08:00:00 GMT"
    web.say("/rows.jsonl", Answer(b"new", headers={"ETag": '"2"'}))
    assert download(uri, path, version) not in (None, version)
    assert path.read_bytes() == b"new"


def test_without_etag_or_length_it_is_read_again_each_time(web: WebServer, path: Path) -> None:
    uri = web.say("/plain.jsonl", Answer(ROWS, headers={"Content-Length": ""}))
    version = download(uri, path)
    assert path.read_bytes() == ROWS
    assert version is not None
    assert download(uri, path, version) is not None


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(web: WebServer, path: Path, status: int) -> None:
    uri = web.say("/busy.jsonl", Answer(status=status), Answer(status=status), ROWS)
    assert download(uri, path) is not None
    assert path.read_bytes() == ROWS
    assert len(web.requests) == 3


def test_half_a_file_is_none(web: WebServer, path: Path) -> None:
    assert download(web.say("/cut.jsonl", Answer(ROWS, cut_after=100), ROWS), path) is not None
    assert path.read_bytes() == ROWS
    refused(
        web.say("/cut.jsonl", Answer(ROWS, cut_after=100)), path, ExitCode.NETWORK_UNAVAILABLE, "after 100 of", "bytes"
    )


def test_what_may_pass_is_tried_four_times_and_may_be_tried_again(web: WebServer, path: Path) -> None:
    refused(web.say("/down.jsonl", Answer(status=503)), path, ExitCode.NETWORK_UNAVAILABLE, "status 503")
    assert len(web.requests) == 4


def test_a_server_that_is_not_there(web: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    refused("https://files.example/x.jsonl", path, ExitCode.NETWORK_UNAVAILABLE, "Connection refused")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, ExitCode.CREDENTIALS_INVALID, "refuses access"),
        (403, ExitCode.CREDENTIALS_INVALID, "refuses access"),
        (404, ExitCode.DATA_INVALID, "there is no such file"),
        (410, ExitCode.DATA_INVALID, "there is no such file"),
        (400, ExitCode.DATA_INVALID, "does not send it"),
    ],
)
def test_a_refusal_is_told_at_once(web: WebServer, path: Path, status: int, code: ExitCode, words: str) -> None:
    refused(web.say("/no.jsonl", Answer(b"canary", status=status)), path, code, words, str(status))
    assert len(web.requests) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_lead_to_https_alone(web: WebServer, path: Path, code: int) -> None:
    web.say("/rows.jsonl", ROWS)
    on = web.say("/on.jsonl", Answer(status=code, headers={"Location": "https://elsewhere.example/rows.jsonl"}))
    download(on, path)
    assert path.read_bytes() == ROWS
    assert web.tunnels == ["files.example:443", "elsewhere.example:443"]
    off = web.say("/off.jsonl", Answer(status=code, headers={"Location": "http://elsewhere.example/rows.jsonl"}))
    refused(off, path, ExitCode.DATA_INVALID, "not https://")
    assert len(web.requests) == 3


def test_redirects_come_to_an_end(web: WebServer, path: Path) -> None:
    uri = web.say("/round.jsonl", Answer(status=302, headers={"Location": "/round.jsonl"}))
    refused(uri, path, ExitCode.DATA_INVALID, "does not send it")
    assert len(web.requests) < 20


@pytest.mark.parametrize("with_length", [True, False])
def test_too_large_a_file_is_not_read_on(
    web: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch, with_length: bool
) -> None:
    monkeypatch.setattr(https, "MAX_BYTES", 100)
    headers = {} if with_length else {"Content-Length": ""}
    refused(web.say("/large.jsonl", Answer(ROWS, headers=headers)), path, ExitCode.DATA_INVALID, "is larger than")
    assert len(web.requests) == 1


def test_a_file_that_is_sent_compressed_is_no_file_of_rows(web: WebServer, path: Path) -> None:
    uri = web.say("/packed.jsonl", Answer(ROWS, headers={"Content-Encoding": "gzip"}))
    refused(uri, path, ExitCode.DATA_INVALID, "compressed")


def test_names_are_sent_as_the_web_writes_them(web: WebServer, path: Path) -> None:
    web.say("/a%20b/%C3%A9.jsonl", ROWS)
    download("https://files.example/a%20b/é.jsonl", path)
    assert path.read_bytes() == ROWS


def test_a_stop_is_heeded_between_attempts(web: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopFlag()
    monkeypatch.setattr(https, "PAUSES", (60.0,))
    monkeypatch.setattr(stop_flag.time, "sleep", lambda seconds: setattr(stop, "is_set", True))
    uri = web.say("/busy.jsonl", Answer(status=503))
    with pytest.raises(TrainerError) as caught:
        WebFile(uri, stop).download(path, "")
    assert caught.value.code == ExitCode.STOPPED
    assert len(web.requests) == 1


def test_a_certificate_that_nobody_vouches_for(web: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = web.say("/rows.jsonl", ROWS)
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(uri, path, ExitCode.NETWORK_UNAVAILABLE, "self-signed certificate")
    assert web.requests == []


@pytest.mark.security(16)
def test_without_a_proxy_the_very_address_that_was_looked_at_is_connected_to(
    web: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.say("/rows.jsonl", ROWS)
    monkeypatch.delenv("HTTPS_PROXY")
    uri = f"https://localhost:{web.port}/rows.jsonl"
    refused(uri, path, ExitCode.SPEC_INVALID, "a private network")
    assert web.requests == []
    monkeypatch.setattr(https, "is_public", lambda address: True)
    download(uri, path)
    assert path.read_bytes() == ROWS
    refused(f"https://127.0.0.1:{web.port}/rows.jsonl", path, ExitCode.NETWORK_UNAVAILABLE, "certificate is not valid")


@pytest.mark.security(16)
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254",
     "10.0.0.1", "100.64.0.1", "172.16.0.1", "192.168.0.1", "0.0.0.1", "[fd00::1]", "[fe80::1]", "[64:ff9b::a00:1]",
     "[2002:a00:1::1]", "224.0.0.1"],
)  # fmt: skip
def test_no_private_address_is_asked_named_or_sent_on_to(web: WebServer, path: Path, host: str) -> None:
    refused(f"https://{host}:{web.port}/rows.jsonl", path, ExitCode.SPEC_INVALID, "a private network")
    to = f"https://{host}:{web.port}/rows.jsonl"
    on = web.say("/on.jsonl", Answer(status=302, headers={"Location": to}))
    refused(on, path, ExitCode.SPEC_INVALID, "a private network")
    assert web.tunnels == ["files.example:443"]


@pytest.mark.security(16)
def test_public_addresses_are_those_of_the_internet() -> None:
    assert https.is_public(ipaddress.ip_address("18.164.1.1"))
    assert https.is_public(ipaddress.ip_address("2600:9000::1"))


@pytest.mark.security(15)
@pytest.mark.parametrize("up", ["%2e%2e", ".%2E", "a%2f..%2f..", "..%5c.."])
def test_an_encoded_step_up_is_refused(web: WebServer, path: Path, up: str) -> None:
    """A server may read it as a step up, and then the allowed beginning of the URI says nothing."""
    refused(f"https://files.example/allowed/{up}/secret.jsonl", path, ExitCode.SPEC_INVALID, "a step up")
    assert web.requests == []


@pytest.mark.security(19)
def test_nothing_is_given_away(web: WebServer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what this machine knows of the host, and not what a proxy's address holds."""
    (tmp_path / ".netrc").write_text("machine files.example login canary password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    web.say("/rows.jsonl", Answer(ROWS, headers={"Set-Cookie": "canary=1"}))
    on = Answer(status=302, headers={"Location": "https://elsewhere.example/rows.jsonl", "Set-Cookie": "canary=1"})
    download(web.say("/on.jsonl", on), path)
    assert len(web.requests) == 2
    for _, headers in web.requests:
        assert "canary" not in str(headers)
        assert not {"authorization", "cookie", "referer"} & headers.keys()


@pytest.mark.security(19)
@pytest.mark.parametrize("proxy", ["http://me:canary@", "http://me:canary@127.0.0.1:9", "http://x:canary", "canary"])
def test_a_proxy_is_not_told(web: WebServer, path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(TrainerError) as caught:
        download("https://files.example/x.jsonl", path)
    assert "canary" not in caught.value.message + caught.value.hint
