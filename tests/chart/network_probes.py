"""Pods that try to connect somewhere: what network policies let through on a real node."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from e2e.jobs import START_SECONDS
from testbed.client import Client, Object, eventually
from testbed.node_images import TRAINER_IMAGE

# The rules for a new pod are written moments after it has started.
_CONNECT = "import socket, sys, time; time.sleep(5); socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
_LISTEN = "import http.server; http.server.test(port={port})"
_NUMBERS = itertools.count()
PORT = 8000


@dataclass(frozen=True)
class Probes:
    """Pods of one namespace, with the labels of a training pod or of a stranger."""

    client: Client
    namespace: str

    def reaches(self, host: str, port: int, labels: dict[str, str]) -> bool:
        """Whether a pod with these labels gets a connection."""
        with self._pod(["-c", _CONNECT, host, str(port)], labels) as path:
            ended = lambda: self.client.get(path)["status"].get("phase") in ("Succeeded", "Failed")  # noqa: E731
            eventually(ended, f"a pod has tried to reach {host}:{port}", START_SECONDS)
            return bool(self.client.get(path)["status"]["phase"] == "Succeeded")

    @contextmanager
    def listening(self, labels: dict[str, str]) -> Iterator[str]:
        """The address of a pod that takes connections at PORT."""
        with self._pod(["-c", _LISTEN.format(port=PORT)], labels) as path:
            address = lambda: self.client.get(path)["status"].get("podIP", "")  # noqa: E731
            eventually(address, "a pod that listens", START_SECONDS)
            # It is up when another pod of its kind can reach it.
            eventually(lambda: self.reaches(address(), PORT, labels), "it listens", START_SECONDS)
            yield address()

    @contextmanager
    def _pod(self, arguments: list[str], labels: dict[str, str]) -> Iterator[str]:
        name = f"probe-{next(_NUMBERS)}"
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        self.client.create(pods, {"metadata": {"name": name, "labels": labels}, "spec": _spec(arguments)})
        try:
            yield f"{pods}/{name}"
        finally:
            self.client.delete(f"{pods}/{name}")


def _spec(arguments: list[str]) -> Object:
    """A pod that the restricted standard takes."""
    container = {
        "name": "probe",
        "image": TRAINER_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python", *arguments],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": user,
        "containers": [container],
    }
