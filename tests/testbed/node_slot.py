"""A real node's place on this machine: a number that decides its names, addresses and folder, held by a lock.

What a run leaves that was killed before it could clean up is removed by the next one that takes the place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .node_machine import NodeUnavailableError

SLOTS = 8
CLEAR_SECONDS = 30.0
_FOLDERS = Path("/var/lib/finetune-testbed")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Slot:
    """One place; nothing of it is shared with another."""

    number: int

    @property
    def name(self) -> str:
        """Of the node's first process and of its cgroup."""
        return f"finetune-node-{self.number}"

    @property
    def folder(self) -> Path:
        """Everything that the node writes."""
        return _FOLDERS / self.name

    @property
    def link(self) -> str:
        """The host's end of the network link to the node."""
        return f"ftnode{self.number}"

    @property
    def host_address(self) -> str:
        """The host, as the node and its pods reach it."""
        return f"10.230.{self.number}.1"

    @property
    def node_address(self) -> str:
        """The node, as the host reaches it."""
        return f"10.230.{self.number}.2"

    @property
    def pod_subnet(self) -> str:
        """The pods' addresses."""
        return f"10.231.{self.number}.0/24"

    def prepare(self) -> None:
        """Make the folder, and the cgroup in every hierarchy."""
        self.folder.mkdir(parents=True, mode=0o711)
        for path in self.cgroups():
            path.mkdir(exist_ok=True)

    def cgroups(self) -> list[Path]:
        """The node's cgroup: one folder with cgroup v2, one for each controller with v1."""
        if (_CGROUPS / "cgroup.controllers").exists():
            return [_CGROUPS / self.name]
        folders = [folder for folder in _CGROUPS.iterdir() if (folder / "cgroup.procs").exists()]
        return [folder / self.name for folder in folders if not folder.is_symlink()]

    def container_processes(self, pod: str = "") -> list[int]:
        """What runs in the node's containers, or in those of the pod with that UID."""
        lists = [path for cgroup in self.cgroups() for path in cgroup.rglob("cgroup.procs") if pod in str(path)]
        return sorted({int(pid) for path in lists for pid in path.read_text(encoding="utf-8").split()})

    def clear(self) -> None:
        """Remove what there is of an earlier node here. Raises NodeUnavailableError."""
        deadline = time.monotonic() + CLEAR_SECONDS
        while self._remove():
            if time.monotonic() > deadline:
                raise NodeUnavailableError(f"{self.name} cannot be cleared: {', '.join(self._remove())} is still there")
            time.sleep(0.1)

    def _remove(self) -> list[str]:
        """Remove what can be removed now; returns what is left. Mounts and networks go with the first process."""
        for pid in _processes_named(self.name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._has_link():
            subprocess.run(["ip", "link", "delete", self.link], capture_output=True, check=False)
        for path in self.cgroups():
            _remove_cgroup(path)
        # The node's mounts are in a namespace of its own: what is seen here is only what it wrote.
        shutil.rmtree(self.folder, ignore_errors=True)
        left = [f"process {pid}" for pid in _processes_named(self.name)]
        left += [str(path) for path in (*self.cgroups(), self.folder) if path.exists()]
        return left + ([f"link {self.link}"] if self._has_link() else [])

    def _has_link(self) -> bool:
        return Path("/sys/class/net", self.link).exists()


@contextmanager
def taken() -> Iterator[Slot]:
    """Hold a free place, cleared before and after."""
    for number in range(SLOTS):
        slot = Slot(number)
        _FOLDERS.mkdir(parents=True, exist_ok=True)
        with (_FOLDERS / f"{slot.name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            slot.clear()
            try:
                slot.prepare()
                yield slot
            finally:
                slot.clear()
            return
    raise NodeUnavailableError(f"{SLOTS} nodes run on this machine already; stop one")


def _remove_cgroup(folder: Path) -> None:
    """Kill what is in a cgroup, and remove it, the innermost first."""
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            for pid in Path(path, "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):  # not empty yet: the next round finds it so
            Path(path).rmdir()


def _processes_named(name: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if name in (folder / "cmdline").read_text().split("\0"):
                found.append(int(folder.name))
    return found
