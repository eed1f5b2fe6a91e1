"""What tells when it is touched: a file that is watched, a host that notes who calls, code that leaves a mark."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

_IN_ACCESS, _IN_OPEN = 0x1, 0x20


@contextmanager
def watched(path: Path) -> Iterator[WatchedFile]:
    """Watch a file with inotify, which sees libraries written in Rust and C++ too."""
    if sys.platform != "linux":
        pytest.skip("watched: inotify is Linux's")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0
    assert libc.inotify_add_watch(descriptor, bytes(path), _IN_ACCESS | _IN_OPEN) >= 0
    try:
        yield WatchedFile(path, descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class WatchedFile:
    """A file that nothing may open."""

    path: Path
    descriptor: int

    def was_opened(self) -> bool:
        """Whether anybody opened it since it was last asked."""
        try:
            return bool(os.read(self.descriptor, 4096))
        except BlockingIOError:
            return False


@dataclass
class Host:
    """A web server beside the hub, which answers everything with 200."""

    requests: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    content: bytes = b"[]"
    port: int = 0


@contextmanager
def listening() -> Iterator[Host]:
    """A host on 127.0.0.1 that notes what it is asked for."""
    host = Host()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"host": host}))
    host.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    host: Host

    def do_GET(self) -> None:
        self.host.requests.append(f"{self.command} {self.path}")
        self.host.authorizations.append(self.headers.get("Authorization"))
        self.send_response(200)
        for name, value in (
            ("ETag", '"canary"'), ("X-Repo-Commit", "a" * 40), ("Content-Length", str(len(self.host.content)))
        ):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.host.content)

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are recorded."""


class Mark:
    """A file that code makes when it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def python(self) -> str:
        """Code that makes the mark when it is imported, and is all that an `auto_map` may ask for."""
        return (
            f"open({str(self.path)!r}, 'w').close()\n"
            "from transformers import BertConfig as Config, BertForSequenceClassification as Model\n"
            "from transformers import PreTrainedTokenizerFast as Tokenizer\n"
        )

    def pickle(self) -> bytes:
        """A pickle that makes the mark when it is read."""
        return pickle.dumps(_Bomb(self.path))

    def was_made(self) -> bool:
        """Whether the code ran."""
        return self.path.exists()


@dataclass
class _Bomb:
    path: Path

    def __reduce__(self) -> tuple[object, ...]:
        return os.open, (str(self.path), os.O_CREAT | os.O_WRONLY)


def edit_json(path: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | fields), encoding="utf-8")
