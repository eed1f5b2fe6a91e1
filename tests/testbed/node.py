"""A cluster with a real node: control plane, DNS, containerd and a kubelet, and the trainer's image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from . import node_images, node_machine, node_slot
from .apiserver import ApiServer
from .binaries import BUILT_NAMES, find
from .client import Client
from .cluster import LEASE, Namespace, make_namespace
from .controllers import controllers
from .coredns import find_coredns
from .kube_router import find_kube_router
from .node_containerd import Containerd, Lent
from .node_dns import ClusterDns
from .node_kubelet import NODE, Credentials, Kubelet
from .node_namespaces import NodeNamespaces
from .node_policies import NetworkPolicies
from .node_proxy import ServiceProxy
from .operator_process import OperatorProcess, install


@dataclass(frozen=True)
class NodeCluster:
    """Everything but the operator, with one node on which pods really run."""

    server: ApiServer
    client: Client
    slot: node_slot.Slot

    @classmethod
    @contextmanager
    def start(cls, *, bare: bool = False) -> Iterator[NodeCluster]:
        """Start all of it; stop and remove it at the end. Raises NodeUnavailableError.

        A bare one has no CRD and no RBAC of the operator, but its image, Services that pods can reach, and network
        policies that hold: there the operator is installed as people do.
        """
        node_machine.ensure_programs()
        binaries = find(BUILT_NAMES)
        coredns = find_coredns()
        images = node_images.archives() + ([node_images.operator_archive()] if bare else [])
        lent = Lent(node_images.libraries(), node_images.LIBRARIES)
        with ExitStack() as stack:
            slot = stack.enter_context(node_slot.taken())
            # First, because the API server listens at the host's end of the node's link.
            namespaces = stack.enter_context(NodeNamespaces(slot).running())
            credentials = Credentials.make(slot.folder)
            server = stack.enter_context(
                ApiServer.start(binaries, address=slot.host_address, users=[credentials.user], flags=credentials.flags)
            )
            if not bare:
                install(server)
            stack.enter_context(controllers(server, real_nodes=True))
            stack.enter_context(ClusterDns(slot, namespaces, coredns).running(server))
            containerd = stack.enter_context(Containerd(slot, namespaces, node_images.PAUSE_IMAGE, [lent]).running())
            for archive in images:
                containerd.import_image(archive)
            stack.enter_context(Kubelet(slot, namespaces, containerd.endpoint).running(server, credentials))
            if bare:
                stack.enter_context(ServiceProxy(slot, namespaces).running(server, NODE))
                stack.enter_context(NetworkPolicies(slot, namespaces, find_kube_router()).running(server, NODE))
            yield cls(server, Client(server), slot)

    def namespace(self, name: str) -> Namespace:
        """A new namespace under the restricted Pod Security Standard, where pods can be made."""
        return make_namespace(name, self)

    def release_lease(self) -> None:
        """Have the next operator lead at once, when no other runs."""
        self.client.delete(LEASE)

    def operator(self, identity: str = "operator", **settings: str | int) -> OperatorProcess:
        """A replica whose training pods run the trainer's image."""
        return OperatorProcess(self.server, identity, **{"trainer_image": node_images.TRAINER_IMAGE, **settings})
