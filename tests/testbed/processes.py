"""Server processes that end when the tests do, however the tests end."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

HOST = "127.0.0.1"
LOG_TAIL_LINES = 30
_LOOK_SECONDS = 0.1


class ServerProcess:
    """A server process with its log file."""

    def __init__(
        self, name: str, command: list[str], folder: Path, environment: Mapping[str, str] = os.environ
    ) -> None:
        self.name = name
        self._command = command
        self._folder = folder
        self._environment = dict(environment)
        self._log = folder / f"{name}.log"
        self._popen: subprocess.Popen[bytes] | None = None
        self._held = ExitStack()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the process, and kill it at the end: nothing it holds is kept."""
        self._start("wb")
        try:
            yield
        finally:
            self._held.close()

    def restart(self) -> None:
        """Kill the process, and start it anew with what it has on disk."""
        self._held.close()
        self._start("ab")

    def _start(self, log_mode: str) -> None:
        with self._log.open(log_mode) as log:
            # In a session of its own, an interrupt from the terminal does not
            # stop etcd before the API server that needs it.
            popen = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._popen = popen
        self._held.enter_context(killed_with_this_process(popen.pid))
        self._held.callback(popen.wait)
        self._held.callback(popen.kill)

    @property
    def pid(self) -> int:
        """The process's id; it must have been started."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen.pid

    def send_signal(self, number: int) -> None:
        """Send the process a signal."""
        if self._popen is not None:
            self._popen.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Wait for the process's end; raises TimeoutExpired."""
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen.wait(seconds)

    def comes_to(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds; False when the process has ended before, or time is up."""
        deadline = time.monotonic() + seconds
        while not holds():
            if self.exit_status() is not None or time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def exit_status(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def log(self) -> str:
        """Everything the process has said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-LOG_TAIL_LINES:])


@contextmanager
def killed_with_this_process(pid: int) -> Iterator[None]:
    """Have a shell kill the process should this one die without cleaning up.

    The shell reads from a pipe that this process alone can write to, so the
    read ends when this process does, however that happens.
    """
    script = 'read -r _; kill -9 "$1"'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", str(pid)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


def free_port() -> int:
    """A port that was free a moment ago, for a server that cannot be handed a socket."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def reserved_port(address: str = HOST) -> Iterator[int]:
    """Hold a free port that a server that shares ports can take, so that nobody else gets it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((address, 0))
        yield holder.getsockname()[1]
