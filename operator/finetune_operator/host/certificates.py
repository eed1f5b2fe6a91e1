"""Certificates that are followed: what a Secret's files say now is what the next handshake and the next pod get."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import ssl
from collections.abc import Iterable
from pathlib import Path

POLL_SECONDS = 30.0

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

    def __init__(self, certificate: Path, key: Path, authority: Path | None = None) -> None:
        """The certificate is its own authority when there is no other. Raises CertificateError."""
        self._certificate, self._key = certificate, key
        self._authority = authority or certificate
        self._seen = self._digest()
        self.server = _server_context()
        self._load()

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

    def _load(self) -> None:
        try:
            if not (authority := self._authority.read_text()):
                raise ValueError(f"{self._authority} is empty")  # which would stand for the system's authorities
            client = ssl.create_default_context(cadata=authority)
            # A pair that does not go together would leave a context without a key: a trial comes first.
            for context in (_server_context(), self.server):
                context.load_cert_chain(self._certificate, self._key)
        except (OSError, ValueError) as error:
            names = ", ".join(map(str, dict.fromkeys((self._certificate, self._key, self._authority))))
            raise CertificateError(f"no certificate with its key and authority in {names}: {error}") from None
        self.client, self.authority = client, authority

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
