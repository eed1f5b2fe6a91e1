"""The namespaces that a real node lives in: with their first process, the kernel ends all of it.

Processes, mounts, pods' networks and the bridge are the node's own, and none of them is seen on the host. So there is
nothing to clean up one by one, however a run ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .node_machine import NodeUnavailableError, run
from .node_slot import Slot
from .processes import ServerProcess

START_SECONDS = 20.0
# Folders of the host that a node's programs write to by fixed paths.
_OWN_FOLDERS = ("/var/log", "/var/lib/kubelet", "/var/lib/cni")
# The kubelet sets these, and they are the whole machine's: it is shown that they are set already.
_TUNABLES = {
    "kernel/keys/root_maxbytes": "25000000",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
}


class NodeNamespaces:
    """Mount, network and process namespaces, linked with the host's network."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        script = _script(slot.folder)
        unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # The last argument is what the process is found by when it has to be ended by a later run.
        self._process = ServerProcess("node", [*unshare, "sh", "-c", script, slot.name], slot.folder)

    @contextmanager
    def running(self) -> Iterator[NodeNamespaces]:
        """Have them; everything that runs in them is killed at the end."""
        _prepare_folders(self._slot.folder)
        with self._process.running():
            self._wait_until_ready()
            self._link()
            yield self

    def command(self, *command: str) -> list[str]:
        """The command as one that runs in the namespaces."""
        own = f"/proc/{self._process.pid}/ns"
        return ["nsenter", f"--mount={own}/mnt", f"--net={own}/net", f"--pid={own}/pid_for_children", "--", *command]

    def _wait_until_ready(self) -> None:
        if not self._process.comes_to((self._slot.folder / "ready").exists, START_SECONDS):
            raise NodeUnavailableError(f"the node's namespaces cannot be made:\n{self._process.log_tail()}")

    def _link(self) -> None:
        """A pair of interfaces, one end in the node. It has no route beyond the host, so pods reach the host alone."""
        slot = self._slot
        run("ip", "link", "add", slot.link, "type", "veth", "peer", "name", "eth0", "netns", str(self._process.pid))
        run("ip", "address", "add", f"{slot.host_address}/30", "dev", slot.link)
        run("ip", "link", "set", slot.link, "up")
        run(*self.command("ip", "address", "add", f"{slot.node_address}/30", "dev", "eth0"))
        run(*self.command("ip", "link", "set", "eth0", "up"))
        run("ip", "route", "add", slot.pod_subnet, "via", slot.node_address)


def _prepare_folders(folder: Path) -> None:
    for path in _OWN_FOLDERS:
        Path(path).mkdir(parents=True, exist_ok=True)
        (folder / "own" / path.lstrip("/")).mkdir(parents=True)
    for name, value in _TUNABLES.items():
        shown = folder / "sysctl" / name
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.write_text(f"{value}\n", encoding="utf-8")


def _script(folder: Path) -> str:
    """What the first process does: set up what is the node's own, then take in orphans."""
    lines = ["set -e", "mount -t tmpfs -o mode=755 tmpfs /run"]
    lines += [f"mount --bind {folder}/own{path} {path}" for path in _OWN_FOLDERS]
    lines += [f"mount --bind {folder}/sysctl/{name} /proc/sys/{name}" for name in _TUNABLES]
    # Forwarding between the bridge and the link, in this network namespace only.
    lines += ["ip link set lo up", "echo 1 > /proc/sys/net/ipv4/ip_forward"]
    lines += [f": > {folder}/ready", "while :; do sleep 3600 & wait; done"]
    return "\n".join(lines)
