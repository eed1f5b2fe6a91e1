"""Plays the kubelet where no node is: a Node that pods are really bound to, and their statuses patched by hand.

No container runs. It stands in for the one part of Kubernetes that needs root and Linux, and says so in its name;
the tests on a real node are the proof of what a kubelet does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any

from .client import STRATEGIC_PATCH, Client, Object, RequestError

NODE = "played-node"
_NODE_PATH = f"/api/v1/nodes/{NODE}"
_CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "5000", "ephemeral-storage": "1Ti"}
_POLL_SECONDS = 0.2
_GRACEFUL_STOP = 143
_KILLED = 137
_INITIALIZING = {"waiting": {"reason": "PodInitializing"}}


class PlayedKubelet:
    """Reports for a node on which nothing runs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._lost: set[str] = set()

    @contextmanager
    def running(self) -> Iterator[PlayedKubelet]:
        """Have the node, and honour deletions, for as long as the with block."""
        self._add_node()
        thread = threading.Thread(target=self._honour_deletions, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def run(self, pod: Object, address: str = "") -> None:
        """The container runs, and the pod has an address if one is given."""
        self._report(pod, "Running", {"running": {"startedAt": _now()}}, ready=True, address=address)

    def wait(self, pod: Object, reason: str, message: str) -> None:
        """The container cannot be started."""
        self._report(pod, "Pending", {"waiting": {"reason": reason, "message": message}})

    def end(self, pod: Object, exit_code: int, *, reason: str = "", message: str | Object = "") -> None:
        """The container has ended, with this as its termination message."""
        self._report(pod, "Failed" if exit_code else "Succeeded", _ended(exit_code, reason, message))

    def fail_beside(self, pod: Object, name: str, exit_code: int, *, reason: str = "", message: Object) -> None:
        """Another container of the pod has failed, and the trainer is done, with this as its termination message."""
        others = [_container_status(name, f"{name}:test", _ended(exit_code, reason))]
        self._report(pod, "Failed", _ended(0, message=message), beside=others)

    def wait_before(self, pod: Object, name: str, reason: str) -> None:
        """An init container cannot be started, and so the trainer cannot."""
        init = _container_status(name, f"{name}:test", {"waiting": {"reason": reason}})
        self._report(pod, "Pending", _INITIALIZING, initContainerStatuses=[init])

    def fail_before(self, pod: Object, name: str, exit_code: int, message: str) -> None:
        """An init container has failed, so that the trainer never was."""
        init = _container_status(name, f"{name}:test", _ended(exit_code, message=message))
        self._report(pod, "Failed", _INITIALIZING, initContainerStatuses=[init])

    def evict(self, pod: Object) -> None:
        """The node needs the pod's place."""
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}
        status = {"phase": "Failed", "reason": "Evicted", "conditions": [disrupted]}
        self._client.patch(f"{_path(pod)}/status", {"status": status}, STRATEGIC_PATCH)

    def reject(self, pod: Object, reason: str, message: str) -> None:
        """The node cannot take the pod after all, so that no container ever is."""
        status = {"phase": "Failed", "reason": reason, "message": message}
        self._client.patch(f"{_path(pod)}/status", {"status": status}, STRATEGIC_PATCH)

    def lose(self, pod: Object, grace_seconds: int) -> None:
        """The pod's machine is gone: the taint manager deletes the pod, and nobody says that it has stopped."""
        self._lost.add(pod["metadata"]["uid"])
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
        self._client.patch(f"{_path(pod)}/status", {"status": {"conditions": [disrupted]}}, STRATEGIC_PATCH)
        self._client.delete(_path(pod), {"gracePeriodSeconds": grace_seconds})

    def evict_for_storage(self, pod: Object, message: str) -> None:
        """The pod has written more than it may. No disruption, so the Job controller counts it."""
        self._report(pod, "Failed", _ended(_KILLED), reason="Evicted", message=message)

    def _report(
        self,
        pod: Object,
        phase: str,
        state: Object,
        *,
        ready: bool = False,
        address: str = "",
        beside: Iterable[Object] = (),
        **more: Any,
    ) -> None:
        [container] = pod["spec"]["containers"]
        status: Object = {
            "phase": phase,
            **more,
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [*beside, _container_status(container["name"], container["image"], state, ready)],
        }
        if address:
            status |= {"podIP": address, "podIPs": [{"ip": address}]}
        self._client.patch(f"{_path(pod)}/status", {"status": status}, STRATEGIC_PATCH)

    def _add_node(self) -> None:
        self._client.create("/api/v1/nodes", {"metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}}})
        ready = {"type": "Ready", "status": "True", "reason": "Played", "message": "no kubelet is behind this node"}
        status: dict[str, Any] = {"capacity": _CAPACITY, "allocatable": _CAPACITY, "conditions": [ready]}
        self._client.patch(f"{_NODE_PATH}/status", {"status": status})
        # Every new node is tainted as not ready until its kubelet reports.
        self._client.patch(_NODE_PATH, {"spec": {"taints": None}})

    def _honour_deletions(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with suppress(OSError, HTTPException, RequestError):  # a test may start the API server anew
                for pod in self._client.items(f"/api/v1/pods?fieldSelector=spec.nodeName={NODE}"):
                    if "deletionTimestamp" in pod["metadata"] and pod["metadata"]["uid"] not in self._lost:
                        self._end_deleted(pod)

    def _end_deleted(self, pod: Object) -> None:
        """As a kubelet: the container gets its signal and stops, then the pod may go."""
        try:
            if pod["status"]["phase"] not in ("Succeeded", "Failed"):
                self.end(pod, _GRACEFUL_STOP)
            self._client.delete(_path(pod), {"gracePeriodSeconds": 0})
        except RequestError:
            return  # gone meanwhile, or the next round sees it again


def _container_status(name: str, image: str, state: Object, ready: bool = False) -> Object:
    return {"name": name, "image": image, "imageID": "", "ready": ready, "restartCount": 0, "state": state}


def _ended(exit_code: int, reason: str = "", message: str | Object = "") -> Object:
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Error" if exit_code else "Completed"),
        "message": message if isinstance(message, str) else json.dumps(message),
        # As containerd has it of a container that it could not start.
        "startedAt": "1970-01-01T00:00:00Z" if reason == "StartError" else _now(),
        "finishedAt": _now(),
    }
    return {"terminated": terminated}


def _path(pod: Object) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
