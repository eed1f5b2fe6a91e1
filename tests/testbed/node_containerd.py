"""containerd of a real node: its own root, state and socket, the pods' network, and what every container is lent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .node_machine import NodeUnavailableError, cni_folder, run
from .node_namespaces import NodeNamespaces
from .node_slot import Slot
from .processes import ServerProcess

START_SECONDS = 30.0

_CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"

[grpc]
address = "{folder}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
# Lowering a score needs CAP_SYS_RESOURCE, which a machine in a machine may lack.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{folder}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{folder}/base-runtime-spec.json"
"""


@dataclass(frozen=True)
class Lent:
    """A folder of this machine that every container sees, to read, without its pod asking for it."""

    source: Path
    target: str


class Containerd:
    """The node's containerd."""

    def __init__(self, slot: Slot, namespaces: NodeNamespaces, pause: str, lent: Sequence[Lent]) -> None:
        self._slot = slot
        self._namespaces = namespaces
        self._pause = pause
        self._lent = lent
        self._folder = slot.folder / "containerd"

    @property
    def endpoint(self) -> str:
        """The address that the kubelet connects to."""
        return f"unix://{self._folder}/containerd.sock"

    @contextmanager
    def running(self) -> Iterator[Containerd]:
        """Start it and wait until it answers; what it started ends with the namespaces."""
        self._configure()
        command = self._namespaces.command("containerd", "--config", str(self._folder / "config.toml"))
        process = ServerProcess("containerd", command, self._folder)
        with process.running():
            socket = self._folder / "containerd.sock"
            if not process.comes_to(lambda: socket.exists() and self._answers(), START_SECONDS):
                raise NodeUnavailableError(f"containerd does not work:\n{process.log_tail()}")
            yield self

    def import_image(self, archive: Path) -> None:
        """Have the images of a docker-archive, as if they had been pulled."""
        self._ctr("--namespace=k8s.io", "images", "import", "--no-unpack", str(archive))

    def _answers(self) -> bool:
        try:
            self._ctr("version")
        except NodeUnavailableError:
            return False
        return True

    def _ctr(self, *arguments: str) -> str:
        command = ["ctr", f"--address={self._folder}/containerd.sock", *arguments]
        return run(*self._namespaces.command(*command))

    def _configure(self) -> None:
        (self._folder / "cni").mkdir(parents=True)
        config = _CONFIG.format(folder=self._folder, pause=self._pause, plugins=cni_folder())
        (self._folder / "config.toml").write_text(config, encoding="utf-8")
        network = json.dumps(_network(self._slot))
        (self._folder / "cni" / "10-testbed.conflist").write_text(network, encoding="utf-8")
        spec = json.loads(run("ctr", "oci", "spec"))
        spec["mounts"] += [_bind(lent) for lent in self._lent]
        (self._folder / "base-runtime-spec.json").write_text(json.dumps(spec), encoding="utf-8")


def _network(slot: Slot) -> dict[str, object]:
    """Pods on a bridge, each with an address of the node's subnet; the host has a route to them."""
    addresses = {"type": "host-local", "ranges": [[{"subnet": slot.pod_subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": addresses}
    return {"cniVersion": "0.4.0", "name": "testbed", "plugins": [bridge]}


def _bind(lent: Lent) -> dict[str, object]:
    options = ["rbind", "ro", "nosuid", "nodev"]
    return {"destination": lent.target, "type": "bind", "source": str(lent.source), "options": options}
