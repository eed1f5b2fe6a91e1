"""A TCP proxy before the API server, whose connections tests cut or silence as bad networks do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .apiserver import ApiServer
from .processes import HOST

_CHUNK = 65536


class Proxy:
    """Passes bytes on, both ways, until told otherwise."""

    def __init__(self, server: ApiServer) -> None:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server((HOST, 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._silenced: set[socket.socket] = set()
        self._refuses = False
        self._last_used: dict[socket.socket, float] = {}

    @property
    def url(self) -> str:
        """Where the API server is reached through the proxy."""
        return f"https://{HOST}:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        """Accept connections for as long as the with block."""
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._listener.close()
            self.cut()

    def cut(self) -> None:
        """Close every connection there is; new ones are accepted."""
        for pair in self._pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def refuse(self, refuses: bool) -> None:
        """Close every new connection at once, as when nobody listens, or no longer."""
        self._refuses = refuses

    def silence(self, idle_seconds: float) -> int:
        """Let nothing more through the connections that were idle for so long, though they stay open; returns how many.

        Where requests come more often than that, these are the watches.
        """
        quiet = time.monotonic() - idle_seconds
        idle = [pair for pair in self._pairs if max(self._last_used.get(end, 0.0) for end in pair) < quiet]
        self._silenced.update(end for pair in idle for end in pair)
        return len(idle)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._refuses:
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                self._last_used[source] = time.monotonic()
                if source not in self._silenced:
                    sink.sendall(data)
        if source not in self._silenced:
            self._pairs = [pair for pair in self._pairs if source not in pair]
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
