"""Puts up a real API server for the scale benchmark, fills it, and reads what processes cost."""

from __future__ import annotations

import asyncio
import importlib.metadata
import math
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from harness import ROOT

sys.path.insert(0, str(ROOT / "tests"))

from testbed.apiserver import ApiServer
from testbed.audit import Write
from testbed.binaries import BUILT_NAMES, find, kubernetes_version
from testbed.client import Client
from testbed.cluster import LEASE
from testbed.controllers import controllers
from testbed.operator_process import install

Object = dict[str, Any]
Send = Callable[[str, str, Object], Awaitable[Object]]

NODE = "played-node"
PACKAGES = ("kopf", "kubernetes", "aiohttp", "pydantic")
_NAMESPACE = "team"
_MANIFEST = ROOT / "manifests" / "samples" / "sentiment-adapter.yaml"
_IN_FLIGHT = 32
_QUIET_SECONDS = 3.0
_QUIET_SHARE = 0.03


@dataclass(frozen=True)
class Bed:
    """An API server with its audit log, and one namespace under the restricted standard."""

    server: ApiServer
    client: Client
    manifest: Object = field(default_factory=lambda: dict(yaml.safe_load(_MANIFEST.read_text())))

    @classmethod
    @contextmanager
    def start(cls, *, with_controllers: bool) -> Iterator[Bed]:
        """Start it, with controller-manager and scheduler where Jobs shall make pods."""
        with ApiServer.start(find(BUILT_NAMES)) as server:
            install(server)
            bed = cls(server, Client(server))
            bed._add_node()
            with controllers(server) if with_controllers else nullcontext():
                bed._add_namespace(with_account=not with_controllers)
                for claim in ("examples", "models"):
                    bed._add_claim(claim)
                yield bed

    def jobs_path(self, name: str = "") -> str:
        """The path of FineTuneJobs."""
        return _path("/apis/finetune-operator.io/v1alpha1", "finetunejobs", name)

    def children_path(self, name: str = "") -> str:
        """The path of batch/v1 Jobs."""
        return _path("/apis/batch/v1", "jobs", name)

    def pods_path(self, name: str = "") -> str:
        """The path of pods."""
        return _path("/api/v1", "pods", name)

    def account_token_path(self) -> str:
        """The path that tokens are requested by."""
        return _path("/api/v1", "serviceaccounts", "default/token")

    def release_lease(self) -> None:
        """Have the next operator lead at once."""
        self.client.delete(LEASE)

    def count(self, path: str) -> int:
        """How many objects there are, without reading them."""
        page = self.client.get(f"{path}?limit=1")
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))

    async def create_jobs(self, names: Iterable[str]) -> dict[str, float]:
        """Create FineTuneJobs as fast as the API server takes them; returns when each was accepted (time.time)."""
        accepted: dict[str, float] = {}
        async with self.session() as send:

            async def create(name: str) -> None:
                await send("POST", self.jobs_path(), {**self.manifest, "metadata": {"name": name}})
                accepted[name] = time.time()

            await in_flight(create, names)
        return accepted

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Send]:
        """Requests as the administrator over kept connections; an answer of 300 or more raises."""
        context = ssl.create_default_context(cafile=self.server.ca_file)
        headers = {"Authorization": f"Bearer {self.server.token}"}
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(self.server.url, headers=headers, connector=connector) as session:

            async def send(method: str, path: str, body: Object) -> Object:
                content = "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"
                async with session.request(method, path, json=body, headers={"Content-Type": content}) as response:
                    answer: Object = await response.json()
                    if response.status >= 300:
                        raise RuntimeError(f"{method} {path}: {response.status} {answer.get('message')}")
                    return answer

            yield send

    def writes(self, credential: str, since: float = 0.0) -> list[Write]:
        """What an account wrote since a moment (time.time)."""
        return [write for write in self.server.audit.writes(credential) if write.time.timestamp() >= since]

    def _add_node(self) -> None:
        """A node that pods can be bound to; nothing runs on it."""
        path = f"/api/v1/nodes/{NODE}"
        self.client.create("/api/v1/nodes", {"metadata": {"name": NODE}})
        capacity = {"cpu": "100k", "memory": "1000Ti", "pods": "20000", "ephemeral-storage": "1000Ti"}
        ready = {"type": "Ready", "status": "True", "reason": "Played", "message": "no kubelet is behind this node"}
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}
        self.client.patch(f"{path}/status", {"status": status})
        self.client.patch(path, {"spec": {"taints": None}})

    def _add_namespace(self, *, with_account: bool) -> None:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.client.create("/api/v1/namespaces", {"metadata": {"name": _NAMESPACE, "labels": labels}})
        if with_account:
            self.client.create(_path("/api/v1", "serviceaccounts"), {"metadata": {"name": "default"}})

    def _add_claim(self, name: str) -> None:
        """A claim that the manifest names, with its volume."""
        shape = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        space = {"storage": "1Gi"}
        volume = {**shape, "capacity": space, "hostPath": {"path": f"/played/{name}"}}
        volume["claimRef"] = {"namespace": _NAMESPACE, "name": name}
        claim = {**shape, "resources": {"requests": space}, "volumeName": name}
        self.client.create("/api/v1/persistentvolumes", {"metadata": {"name": name}, "spec": volume})
        self.client.create(_path("/api/v1", "persistentvolumeclaims"), {"metadata": {"name": name}, "spec": claim})


async def in_flight(work: Callable[[str], Awaitable[None]], items: Iterable[str], limit: int = _IN_FLIGHT) -> None:
    """Do work for each item, a number of them at the same time."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(limit):
            group.create_task(worker())


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all threads (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> dict[str, float]:
    """Resident memory of a process now and at its peak (Linux)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, peak = (int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    return {"rss_mib": round(now, 1), "peak_rss_mib": round(peak, 1)}


def wait_until_quiet(pid: int, limit_seconds: float) -> float:
    """Wait until a process has done next to nothing for three seconds; returns its CPU time when it fell quiet."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        before = cpu_seconds(pid)
        time.sleep(_QUIET_SECONDS)
        if cpu_seconds(pid) - before < _QUIET_SECONDS * _QUIET_SHARE:
            return before
    raise TimeoutError(f"process {pid} was not quiet within {limit_seconds:.0f} s")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * share) - 1]


def versions() -> dict[str, str]:
    """Versions of what the operator and the API server are made of."""
    return {"kubernetes_api": kubernetes_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _path(prefix: str, plural: str, name: str = "") -> str:
    return f"{prefix}/namespaces/{_NAMESPACE}/{plural}" + (f"/{name}" if name else "")
