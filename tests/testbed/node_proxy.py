"""The Service proxy of a real node: pods reach the API server and each other by the addresses of Services."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .apiserver import ApiServer
from .client import Client
from .node_machine import NodeUnavailableError
from .node_namespaces import NodeNamespaces
from .node_slot import Slot
from .processes import ServerProcess

SETTLE_SECONDS = 3.0


class ServiceProxy:
    """kube-proxy in the node's network."""

    def __init__(self, slot: Slot, namespaces: NodeNamespaces) -> None:
        self._slot = slot
        self._namespaces = namespaces
        self._folder = slot.folder / "kube-proxy"

    @contextmanager
    def running(self, server: ApiServer, node: str) -> Iterator[None]:
        """Start it; it ends with the namespaces. Raises NodeUnavailableError."""
        self._folder.mkdir()
        config = self._folder / "config.json"
        config.write_text(json.dumps(self._configuration(server, node)), encoding="utf-8")
        publish_api_server(server)
        command = self._namespaces.command(str(server.binaries.folder / "kube-proxy"), f"--config={config}")
        process = ServerProcess("kube-proxy", command, self._folder)
        with process.running():
            # It says nothing when it works.
            with suppress(subprocess.TimeoutExpired):
                process.wait(SETTLE_SECONDS)
            if process.exit_status() is not None:
                raise NodeUnavailableError(f"kube-proxy does not work:\n{process.log_tail()}")
            yield

    def _configuration(self, server: ApiServer, node: str) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(server.kubeconfig)},
            "clusterCIDR": self._slot.pod_subnet,
            "hostnameOverride": node,
            # What answers is on the same bridge, and would answer past the translation.
            "nftables": {"masqueradeAll": True},
            # These limits are the whole machine's.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }


def publish_api_server(server: ApiServer) -> None:
    """Where the Service `kubernetes` leads, which the API server of the tests does not say itself."""
    address, _, port = server.url.removeprefix("https://").rpartition(":")
    labels = {"kubernetes.io/service-name": "kubernetes"}
    body = {
        "metadata": {"name": "kubernetes", "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": int(port), "protocol": "TCP"}],
    }
    Client(server).create("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", body)
