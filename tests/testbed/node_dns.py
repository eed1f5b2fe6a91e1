"""The cluster DNS of a real node: pods find Services, and each other under a headless one, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from .apiserver import ApiServer
from .node_machine import NodeUnavailableError
from .node_namespaces import NodeNamespaces
from .node_slot import Slot
from .processes import ServerProcess

DOMAIN = "cluster.local"
START_SECONDS = 30.0
_READY_PORT = 8181
# As kubeadm's, without what a cluster of one node for tests has no use for: a cache, names of the world, metrics.
_COREFILE = """\
{domain}:53 {{
    errors
    ready :{ready_port}
    kubernetes {domain} {{
        kubeconfig {kubeconfig}
    }}
}}
"""


class ClusterDns:
    """CoreDNS in the node's network, at the node's address."""

    def __init__(self, slot: Slot, namespaces: NodeNamespaces, program: Path) -> None:
        self._slot = slot
        self._namespaces = namespaces
        self._program = program
        self._folder = slot.folder / "coredns"

    @contextmanager
    def running(self, server: ApiServer) -> Iterator[None]:
        """Start it and wait until it knows the cluster's Services. Raises NodeUnavailableError."""
        self._folder.mkdir()
        corefile = _COREFILE.format(domain=DOMAIN, ready_port=_READY_PORT, kubeconfig=server.kubeconfig)
        (self._folder / "Corefile").write_text(corefile, encoding="utf-8")
        command = self._namespaces.command(str(self._program), "-conf", str(self._folder / "Corefile"))
        process = ServerProcess("coredns", command, self._folder)
        with process.running():
            if not process.comes_to(self._is_ready, START_SECONDS):
                raise NodeUnavailableError(f"CoreDNS does not work:\n{process.log_tail()}")
            yield

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://{self._slot.node_address}:{_READY_PORT}/ready", timeout=2.0) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False
