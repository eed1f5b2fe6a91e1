"""Certificates follow their files: the next handshake gets what is there, and what cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from certificate_pairs import KEYS, issue, make_pair, needs_openssl
from finetune_operator.host.certificates import Certificate, CertificateError, follow

pytestmark = needs_openssl
ENDS, LATER, PAST = "20400229123456Z", "20550102030405Z", "20210203040506Z"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders, `old`, `new`, and one for each kind of key, each with tls.crt and tls.key of localhost."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("old", "new"):
        make_pair(root / name)
    for key in KEYS:
        issue(root / key, ENDS, key)
    return root


class Secret:
    """A Secret's folder as the kubelet makes it: `..data` is a link to the files, and another after a change."""

    def __init__(self, folder: Path, pairs: Path) -> None:
        self._folder, self._pairs, self._number = folder, pairs, 0
        self.put("old")
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(Path("..data") / name)

    def put(self, certificate: str, key: str = "") -> None:
        self._number += 1
        version = self._folder / f"..{self._number}"
        version.mkdir()
        for name, pair in (("tls.crt", certificate), ("tls.key", key or certificate)):
            source = self._pairs / pair / name
            if source.exists():
                shutil.copy(source, version)
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")

    def load(self) -> Certificate:
        return Certificate(self._folder / "tls.crt", self._folder / "tls.key")


@pytest.fixture
def secret(tmp_path: Path, pairs: Path) -> Secret:
    return Secret(tmp_path, pairs)


@contextlib.contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """Shake hands with everybody who connects."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as channel:
                    channel.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def shown(port: int, trusted: ssl.SSLContext) -> str:
    """The certificate that a new handshake gets, verified."""
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        trusted.wrap_socket(connection, server_hostname="localhost") as channel,
    ):
        return ssl.DER_cert_to_PEM_cert(channel.getpeercert(binary_form=True) or b"")


def pem(pairs: Path, name: str) -> str:
    return (pairs / name / "tls.crt").read_text()


def test_the_next_handshake_gets_the_new_certificate_and_pods_its_authority(secret: Secret, pairs: Path) -> None:
    certificate = secret.load()
    with serving(certificate.server) as port:
        assert shown(port, certificate.client) == pem(pairs, "old") == certificate.authority
        secret.put("new")
        assert shown(port, certificate.client) == pem(pairs, "old"), "not yet looked at"
        assert certificate.reload()
        assert shown(port, certificate.client) == pem(pairs, "new") == certificate.authority


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("before", KEYS)
def test_a_certificate_with_another_kind_of_key_takes_the_place_of_the_one_before(
    secret: Secret, pairs: Path, before: str, key: str
) -> None:
    secret.put(before)
    certificate = secret.load()
    with serving(certificate.server) as port:
        secret.put(key)
        certificate.reload()
        assert shown(port, certificate.client) == pem(pairs, key)


def test_an_authority_that_is_gone_is_no_longer_trusted(secret: Secret) -> None:
    certificate, old = secret.load(), secret.load()
    secret.put("new")
    certificate.reload()
    with serving(old.server) as port, pytest.raises(ssl.SSLCertVerificationError):
        shown(port, certificate.client)


def test_what_has_not_changed_is_not_loaded_again(secret: Secret) -> None:
    certificate = secret.load()
    client = certificate.client
    secret.put("old")
    assert not certificate.reload()
    assert certificate.client is client


@pytest.mark.parametrize(("crt", "key"), [("new", "old"), ("old", "new"), ("new", "none"), ("none", "new")])
def test_a_pair_that_does_not_go_together_changes_nothing_and_is_told_once(
    secret: Secret, pairs: Path, crt: str, key: str
) -> None:
    certificate = secret.load()
    with serving(certificate.server) as port:
        secret.put(crt, key)
        with pytest.raises(
            CertificateError, match=r"no certificate with its key and authority in .*tls\.crt, .*tls\.key"
        ):
            certificate.reload()
        assert not certificate.reload()
        assert shown(port, certificate.client) == pem(pairs, "old") == certificate.authority
        secret.put("new")
        assert certificate.reload()
        assert shown(port, certificate.client) == pem(pairs, "new")


def test_an_authority_of_its_own_follows_too_and_one_that_is_none_changes_nothing(
    secret: Secret, pairs: Path, tmp_path: Path
) -> None:
    authority = tmp_path / "ca.crt"
    authority.write_text(pem(pairs, "old"))
    certificate = Certificate(tmp_path / "tls.crt", tmp_path / "tls.key", authority)
    both = pem(pairs, "old") + pem(pairs, "new")
    authority.write_text(both)
    assert certificate.reload()
    for broken in ("", "no PEM"):
        authority.write_text(broken)
        with pytest.raises(CertificateError):
            certificate.reload()
    assert certificate.authority == both


def test_what_is_written_beside_an_authority_in_other_letters_is_left_out(pairs: Path, tmp_path: Path) -> None:
    """Bundles of authorities have their names so."""
    (tmp_path / "ca.crt").write_text(f"# Főtanúsítvány\n{pem(pairs, 'old')}", encoding="utf-8")
    certificate = Certificate(pairs / "old" / "tls.crt", pairs / "old" / "tls.key", tmp_path / "ca.crt")
    with serving(certificate.server) as port:
        assert shown(port, certificate.client) == pem(pairs, "old")
    assert certificate.authority.isascii()


@pytest.mark.parametrize(("crt", "key"), [("new", "old"), ("none", "new")])
def test_without_a_pair_at_the_start_there_is_an_error_that_names_the_files(
    tmp_path: Path, pairs: Path, crt: str, key: str
) -> None:
    with pytest.raises(CertificateError, match=r"tls\.crt, .*tls\.key: "):
        Certificate(pairs / crt / "tls.crt", pairs / key / "tls.key")


def seconds(ends: str) -> float:
    return datetime.strptime(ends, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def loaded(pair: Path, authority: Path | None = None) -> Certificate:
    return Certificate(pair / "tls.crt", pair / "tls.key", authority)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("ends", [ENDS, LATER, PAST])
def test_the_end_is_known_of_a_certificate_that_signed_itself_also_after_it(
    tmp_path: Path, key: str, ends: str
) -> None:
    assert loaded(issue(tmp_path, ends, key)).ends == seconds(ends)


def test_the_end_is_known_before_a_certificate_is_valid(tmp_path: Path) -> None:
    assert loaded(issue(tmp_path, LATER, starts=ENDS)).ends == seconds(LATER)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("ends", [ENDS, PAST])
def test_the_end_is_the_servers_and_not_one_of_those_that_signed_it(tmp_path: Path, key: str, ends: str) -> None:
    root = issue(tmp_path / "root", LATER, key, kind="authority")
    middle = issue(tmp_path / "middle", "20450101000000Z", key, by=root, kind="authority")
    server = issue(tmp_path / "server", ends, key, by=middle)
    alone, chain = (pair / "tls.crt" for pair in (server, middle))
    assert loaded(server, root / "tls.crt").ends == seconds(ends), "the server's alone"
    alone.write_text(alone.read_text() + chain.read_text())
    assert loaded(server, root / "tls.crt").ends == seconds(ends), "with the one between"
    alone.write_text(alone.read_text() + (root / "tls.crt").read_text() + (server / "tls.key").read_text())
    assert loaded(server, root / "tls.crt").ends == seconds(ends), "with all of them, and the key"


def test_the_end_is_that_of_the_certificate_in_use(secret: Secret, pairs: Path) -> None:
    issue(pairs / "later", LATER, "RSA")
    secret.put("EC")
    certificate = secret.load()
    assert certificate.ends == seconds(ENDS)
    secret.put("later", "new")
    with pytest.raises(CertificateError):
        certificate.reload()
    assert certificate.ends == seconds(ENDS)
    secret.put("later")
    assert certificate.reload()
    assert certificate.ends == seconds(LATER)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("client", "unsuitable certificate purpose"),
        ("signer", "unsuitable certificate purpose"),
        ("any", "unsuitable certificate purpose"),
        ("unknown", "unhandled critical extension"),
    ],
)
def test_a_certificate_that_clients_may_refuse_is_served_with_a_warning_and_has_no_known_end(
    secret: Secret, pairs: Path, caplog: pytest.LogCaptureFixture, kind: str, why: str
) -> None:
    """A scraper that does not verify goes on with it."""
    issue(pairs / kind, ENDS, kind=kind)
    secret.put(kind)
    certificate = secret.load()
    assert math.isnan(certificate.ends)
    [warning] = caplog.records
    assert warning.levelname == "WARNING"
    assert re.search(rf"tls\.crt: clients that verify may refuse this certificate \(.*{why}", warning.getMessage())
    trusting_all = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting_all.check_hostname, trusting_all.verify_mode = False, ssl.CERT_NONE
    with serving(certificate.server) as port:
        assert shown(port, trusting_all) == pem(pairs, kind)
        secret.put("EC")
        assert certificate.reload()
        assert certificate.ends == seconds(ENDS)
        secret.put(kind)
        assert certificate.reload()
        assert shown(port, trusting_all) == pem(pairs, kind)
    assert math.isnan(certificate.ends)


def test_following_says_one_line_for_a_pair_that_is_broken_and_goes_on(
    secret: Secret, pairs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = secret.load()
    caplog.set_level(logging.INFO)

    async def run() -> None:
        following = asyncio.create_task(follow([certificate], 0.01))
        secret.put("new", "old")
        await asyncio.sleep(0.2)
        secret.put("new")
        async with asyncio.timeout(10):
            while certificate.authority != pem(pairs, "new"):
                await asyncio.sleep(0.01)
        following.cancel()

    asyncio.run(run())
    levels = [record.levelname for record in caplog.records if record.name.startswith("finetune_operator")]
    assert levels == ["ERROR", "INFO"]
    assert "the one before stays in use" in caplog.text
    assert "Traceback" not in caplog.text
