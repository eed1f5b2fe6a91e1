"""Certificates follow their files: the next handshake gets what is there, and what cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificate_pairs import make_pair, needs_openssl
from finetune_operator.host.certificates import Certificate, CertificateError, follow

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, `old` and `new`, each with tls.crt and tls.key of localhost."""
    root = tmp_path_factory.mktemp("pairs")
    for name in ("old", "new"):
        make_pair(root / name)
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


@pytest.mark.parametrize(("crt", "key"), [("new", "old"), ("none", "new")])
def test_without_a_pair_at_the_start_there_is_an_error_that_names_the_files(
    tmp_path: Path, pairs: Path, crt: str, key: str
) -> None:
    with pytest.raises(CertificateError, match=r"tls\.crt, .*tls\.key: "):
        Certificate(pairs / crt / "tls.crt", pairs / key / "tls.key")


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
