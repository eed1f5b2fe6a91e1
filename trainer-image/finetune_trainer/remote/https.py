"""Reads one file of a web server: certificate checked, no credentials sent, no address of a private network asked.

Redirects lead to https:// only. Behind a proxy the proxy looks names up, and is what keeps them apart.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib import error as url_errors
from urllib import request as url_requests
from urllib.parse import SplitResult, quote, unquote, urlsplit

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.stop import StopFlag

SCHEME = "https://"
MAX_BYTES = 10 * 2**30
"""More is not read: rows are held in memory, and a server could send without end."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt."""
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 2**20
_LATER = {408, 425, 429}
_VALIDATORS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
_WORLD_V6 = ipaddress.IPv6Network("2000::/3")


class _TryAgain(Exception):
    """What may pass; the message says what it was."""


class _Unchanged(Exception):
    """The file is still the one that was asked about."""


class WebFile:
    """A file that an https:// URI names."""

    def __init__(self, uri: str, stop: StopFlag) -> None:
        """Raises TrainerError when the URI is none that is asked for."""
        self.uri = uri
        self._stop = stop
        self._address = _checked(uri, uri)

    def download(self, path: Path, version: str) -> str | None:
        """Write the file and return its version; None, and nothing written, if it is still the one given.

        Raises TrainerError, and OSError where the disk refuses.
        """
        for pause in (*PAUSES, None):
            try:
                return self._attempt(path, version)
            except _Unchanged:
                return None
            except _TryAgain as error:
                if pause is None:
                    raise TrainerError(
                        ExitCode.NETWORK_UNAVAILABLE,
                        f"{self.uri}: the server cannot be reached: {error}",
                        "check the address, the network and proxies",
                    ) from None
                self._stop.wait(pause, f"{self.uri} was being downloaded")
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, path: Path, version: str) -> str:
        with self._errors():
            answer = _opener(self.uri).open(self._request(version), timeout=_TIMEOUT_SECONDS)
        with answer:
            size = self._size(answer.headers)
            self._copy(answer, path, size)
            return json.dumps({name: answer.headers[name] for name in _VALIDATORS if answer.headers[name]})

    def _request(self, version: str) -> url_requests.Request:
        known = json.loads(version) if version else {}
        headers = {_VALIDATORS[name]: value for name, value in known.items()}
        path = quote(self._address.path or "/", safe="/%:@!$&'()*+,;=~-._")
        url = f"{SCHEME}{self._address.netloc}{path}"
        return url_requests.Request(url, headers={"User-Agent": "finetune-trainer", **headers})  # noqa: S310 - https

    def _size(self, headers: Message) -> int | None:
        if headers.get("Content-Encoding", "identity") != "identity":
            raise _refused(f"{self.uri}: is sent compressed", "name a file that is sent as it is")
        length = headers.get("Content-Length", "")
        size = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        if size is not None and size > MAX_BYTES:
            raise self._too_large()
        return size

    def _copy(self, answer: IO[bytes], path: Path, size: int | None) -> None:
        received = 0
        with path.open("wb") as sink:
            while chunk := self._read(answer):
                received += len(chunk)
                if received > MAX_BYTES:
                    raise self._too_large()
                sink.write(chunk)
        if size is not None and received != size:
            raise _TryAgain(f"it hung up after {received} of {size} bytes")

    def _read(self, answer: IO[bytes]) -> bytes:
        self._stop.check(f"{self.uri} was being downloaded")
        with self._errors():
            return answer.read(_CHUNK_BYTES)

    def _too_large(self) -> TrainerError:
        return _refused(
            f"{self.uri}: is larger than {MAX_BYTES // 2**30} GiB, more than is read from a web server",
            "put it on a claim or into an object store",
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (TrainerError, MemoryError):
            raise
        except url_errors.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.NOT_MODIFIED:
                raise _Unchanged from None
            raise self._answered(error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _TryAgain(_one_line(getattr(error, "reason", error))) from None

    def _answered(self, status: int) -> Exception:
        if status >= 500 or status in _LATER:
            return _TryAgain(f"it answers with status {status}")
        if status in (401, 403, 407):
            return TrainerError(
                ExitCode.CREDENTIALS_INVALID,
                f"{self.uri}: the server refuses access (status {status})",
                "https:// is read without credentials; put the file on a claim or into an object store",
            )
        what = "there is no such file" if status in (404, 410) else "the server does not send it"
        return _refused(f"{self.uri}: {what} (status {status})", "check the address")


def _refused(message: str, hint: str) -> TrainerError:
    return TrainerError(ExitCode.DATA_INVALID, message, hint)


def _checked(url: str, uri: str) -> SplitResult:
    """The parts of an address that may be asked. Raises TrainerError; `uri` is what the manifest says."""
    try:
        address = urlsplit(url)
        host, _ = address.hostname, address.port
    except ValueError:
        host = None
    if not host or not _is_host(host) or "@" in address.netloc:
        raise TrainerError(ExitCode.SPEC_INVALID, f"{uri}: is no address of a web server", "write https://host/path")
    if ".." in re.split(r"[/\\]", unquote(address.path)):
        # What the administrator allows is judged by how the URI begins.
        raise TrainerError(ExitCode.SPEC_INVALID, f"{uri}: has a step up in its path", "write the path without it")
    if (literal := _literal(host)) is not None and not is_public(literal):
        raise _private(uri, str(literal))
    return address


def _is_host(host: str) -> bool:
    try:
        host.encode("idna" if not host.isascii() else "ascii")
    except UnicodeError:
        return False
    return re.fullmatch(r"[\w.:%-]+", host) is not None


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is written as, also in the forms that only the C library reads (127.1, 0x7f000001)."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return None


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of the internet, and not of the platform's own networks or of this machine."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None or address.sixtofour is not None or address.teredo is not None:
        return False  # an IPv4 address in disguise
    return address.is_global and address in _WORLD_V6


def _private(uri: str, address: str) -> TrainerError:
    return TrainerError(
        ExitCode.SPEC_INVALID,
        f"{uri}: leads to {address}, an address of a private network, and none is asked for what a job names",
        "put the file on a claim or into an object store",
    )


def _opener(uri: str) -> url_requests.OpenerDirector:
    """Opens https:// alone; no cookies, no passwords, no other protocol."""
    opener = url_requests.OpenerDirector()
    for handler in (
        url_requests.ProxyHandler(),
        _Connections(uri),
        _Redirects(uri),
        url_requests.HTTPErrorProcessor(),
        url_requests.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(url_requests.HTTPRedirectHandler):
    def __init__(self, uri: str) -> None:
        self._uri = uri

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme != "https":
            raise _refused(
                f"{self._uri}: the server sends on to an address that is not https://", "name where the file really is"
            )
        _checked(newurl, self._uri)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connections(url_requests.HTTPSHandler):
    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._trust = ssl.create_default_context()  # the system's authorities, or those in SSL_CERT_FILE

    def https_open(self, req: url_requests.Request) -> Any:
        uri, context = self._uri, self._trust

        class Direct(http.client.HTTPSConnection):
            def connect(self) -> None:
                plain = _connect(self.host, self.port, float(self.timeout or _TIMEOUT_SECONDS), uri)
                self.sock = context.wrap_socket(plain, server_hostname=self.host)

        is_proxied = req.host != urlsplit(req.full_url).netloc
        return self.do_open(http.client.HTTPSConnection if is_proxied else Direct, req, context=context)


def _connect(host: str, port: int, timeout: float, uri: str) -> socket.socket:
    """Connect to the very address that was looked at: a name could be looked up to another one the next time."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
    for address in addresses:
        if not is_public(ipaddress.ip_address(address)):
            raise _private(uri, address)
    problem: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as error:
            problem = error
    raise problem or OSError("the name has no address")


def _one_line(error: object) -> str:
    """What went wrong. Only the system's own words are passed on: others quote a proxy, and so its password."""
    words = " ".join(str(error).split())[:200] if isinstance(error, OSError) else ""
    return words or type(error).__name__
