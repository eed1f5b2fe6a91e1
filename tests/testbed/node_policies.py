"""The network policies of a real node: kube-router writes them as rules of the node's kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .apiserver import SERVICES, ApiServer
from .node_machine import NodeUnavailableError, run
from .node_namespaces import NodeNamespaces
from .node_slot import Slot
from .processes import ServerProcess

START_SECONDS = 30.0
_READY = "enforcing network policies"


class NetworkPolicies:
    """Enforces NetworkPolicies between pods, and between pods and the world."""

    def __init__(self, slot: Slot, namespaces: NodeNamespaces, program: Path) -> None:
        self._namespaces = namespaces
        self._program = program
        self._folder = slot.folder / "kube-router"

    @contextmanager
    def running(self, server: ApiServer, node: str) -> Iterator[None]:
        """Start it when the node is there; its rules end with the namespaces. Raises NodeUnavailableError."""
        self._folder.mkdir()
        # What goes from pod to pod stays on the bridge, and would pass below the rules.
        run(*self._namespaces.command("sysctl", "--quiet", "--write", "net.bridge.bridge-nf-call-iptables=1"))
        command = self._namespaces.command(
            str(self._program),
            f"--kubeconfig={server.kubeconfig}",
            f"--hostname-override={node}",
            f"--service-cluster-ip-range={SERVICES}",
        )
        process = ServerProcess("kube-router", command, self._folder)
        with process.running():
            if not process.comes_to(lambda: _READY in process.log(), START_SECONDS):
                raise NodeUnavailableError(f"kube-router does not work:\n{process.log_tail()}")
            yield
