"""Certificates that are followed: what a Secret's files say now is what the next handshake and the next pod get."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import cast

POLL_SECONDS = 30.0
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which Python has no name."""

logger = logging.getLogger(__name__)


class CertificateError(OSError):
    """The files are no certificate with its key."""


class Certificate:
    """A server's certificate and key, and the authority that its clients verify it by."""

    server: ssl.SSLContext
    """The server's side; the same object for as long as it serves."""
    client: ssl.SSLContext
    """The side of who verifies; another after each change, so that an authority that is gone is no longer trusted."""
    authority: str
    """PEM: what clients are given to verify the server by."""
    ends: float
    """Until when the server's certificate is valid, in Unix time; NaN of one that clients may refuse."""

    def __init__(self, certificate: Path, key: Path, authority: Path | None = None) -> None:
        """The certificate is its own authority when there is no other. Raises CertificateError."""
        self._certificate, self._key = certificate, key
        self._authority = authority or certificate
        self._seen = self._digest()
        self.server = _server_context()
        self._load()
        # What a context has loaded stays in it beside a later certificate with another kind of key: each has its own.
        self.server.sni_callback = self._present

    def reload(self) -> bool:
        """Take what the files have become; False when that is nothing new.

        What cannot be used raises CertificateError, once, and changes nothing: the pair before stays in use.
        """
        digest = self._digest()
        if digest == self._seen:
            return False
        self._seen = digest
        self._load()
        return True

    def _present(self, channel: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Go on with a handshake as the certificate that is in use now."""
        channel.context = self._pair

    def _load(self) -> None:
        try:
            if not (authority := _pem(self._authority)):
                raise ValueError(f"{self._authority} is empty")  # which would stand for the system's authorities
            client = ssl.create_default_context(cadata=authority)
            pair = _server_context()
            pair.load_cert_chain(self._certificate, self._key)
            ends = self._end(pair)
        except (OSError, ValueError) as error:
            names = ", ".join(map(str, dict.fromkeys((self._certificate, self._key, self._authority))))
            raise CertificateError(f"no certificate with its key and authority in {names}: {error}") from None
        self.client, self.authority, self.ends, self._pair = client, authority, ends, pair

    def _end(self, pair: ssl.SSLContext) -> float:
        """Nobody but a gauge asks for it: a certificate that has none to be found is served all the same."""
        shown = _pem(self._certificate)
        try:
            return _end_shown(pair, shown)
        except (ssl.SSLError, ValueError) as error:
            told = "%s: clients that verify may refuse this certificate (%s); when it expires is not known"
            logger.warning(told, self._certificate, error)
            return math.nan

    def _digest(self) -> bytes:
        """Of what the files hold; of one that cannot be read, nothing, and loading it says why."""
        total = hashlib.sha256()
        for path in (self._certificate, self._key, self._authority):
            with contextlib.suppress(OSError):
                total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.digest()


async def follow(certificates: Iterable[Certificate], seconds: float = POLL_SECONDS) -> None:
    """Reload what changes, until cancelled: the kubelet swaps a link, which tells no watcher of a file."""
    followed = tuple(certificates)
    while True:
        await asyncio.sleep(seconds)
        for certificate in followed:
            try:
                if certificate.reload():
                    logger.info("a certificate was replaced, and is in use")
            except CertificateError as error:
                logger.error("%s; the one before stays in use", error)


def _server_context() -> ssl.SSLContext:
    return ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)


def _pem(path: Path) -> str:
    """A file's text without the letters that PEM does not have; people write names beside a certificate."""
    return path.read_text("ascii", "ignore")


def _end_shown(pair: ssl.SSLContext, certificates: str) -> float:
    """Until when a server's certificate is valid: what a handshake shows to a client that trusts it, whenever it is.

    Raises ssl.SSLError where that client refuses it.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    trusting.load_verify_locations(cadata=certificates)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = pair.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server, client):  # TLS 1.3 needs three of these turns, TLS 1.2 all five
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    shown = cast("dict[str, str]", client.getpeercert())
    return float(ssl.cert_time_to_seconds(shown["notAfter"]))
