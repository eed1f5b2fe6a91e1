"""The kubelet of a real node, known to the API server as that node and nobody else."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .apiserver import ApiServer
from .client import Client
from .node_dns import DOMAIN
from .node_machine import NodeUnavailableError, run
from .node_namespaces import NodeNamespaces
from .node_slot import Slot
from .processes import ServerProcess

NODE = "testbed-node"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Credentials:
    """What the kubelet and the API server know each other by."""

    token: str
    """The kubelet's, of a user that the node authorizer limits to what that node needs."""
    certificate: Path
    """The API server's as a client of kubelets."""
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Credentials:
        """Make new ones."""
        certificate, key = folder / "kubelet-client.crt", folder / "kubelet-client.key"
        run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
            *("-subj", "/O=system:masters/CN=kube-apiserver-kubelet-client", "-addext", "extendedKeyUsage=clientAuth"),
            *("-keyout", key, "-out", certificate),
        )
        return cls(secrets.token_urlsafe(32), certificate, key)

    @property
    def user(self) -> str:
        """The kubelet's line in the API server's token file."""
        return f'{self.token},system:node:{NODE},{NODE},"system:nodes"'

    @property
    def flags(self) -> list[str]:
        """The API server's flags."""
        return [
            f"--kubelet-client-certificate={self.certificate}",
            f"--kubelet-client-key={self.key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--enable-admission-plugins=NodeRestriction",
        ]


class Kubelet:
    """The node's kubelet."""

    def __init__(self, slot: Slot, namespaces: NodeNamespaces, endpoint: str) -> None:
        self._slot = slot
        self._namespaces = namespaces
        self._endpoint = endpoint
        self._folder = slot.folder / "kubelet"

    @contextmanager
    def running(self, server: ApiServer, credentials: Credentials) -> Iterator[None]:
        """Start it and wait until its node is ready."""
        self._folder.mkdir()
        config, kubeconfig = self._folder / "config.json", self._folder / "kubeconfig"
        config.write_text(json.dumps(self._configuration(credentials)), encoding="utf-8")
        server.write_kubeconfig(kubeconfig, credentials.token)
        command = self._namespaces.command(
            str(server.binaries.folder / "kubelet"),
            f"--config={config}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NODE}",
            f"--node-ip={self._slot.node_address}",
        )
        process = ServerProcess("kubelet", command, self._folder)
        with process.running():
            client = Client(server)
            if not process.comes_to(lambda: _is_ready(client), START_SECONDS):
                raise NodeUnavailableError(f"the kubelet does not work:\n{process.log_tail()}")
            yield

    def _configuration(self, credentials: Credentials) -> dict[str, object]:
        nameservers = self._folder / "resolv.conf"
        nameservers.write_text("", encoding="utf-8")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self._slot.node_address,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(credentials.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": self._endpoint,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._slot.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [self._slot.node_address],
            "clusterDomain": DOMAIN,
            # The host's servers cannot be reached.
            "resolvConf": str(nameservers),
            # A full disk is the owner's business; and an image that was collected could not be pulled again.
            "evictionHard": {"memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
        }


def _is_ready(client: Client) -> bool:
    node = client.find(f"/api/v1/nodes/{NODE}")
    if node is None or node["spec"].get("taints"):
        return False
    conditions = node.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
