"""What a machine must be and have for a real node: root on Linux, and programs that are installed when missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
# The program, and the Debian package that has it.
_PACKAGES = {
    "buildah": "buildah",
    "containerd": "containerd",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "ipset": "ipset",
    "iptables": "iptables",
    "mount": "mount",
    "nft": "nftables",
    "openssl": "openssl",
    "runc": "runc",
    "sysctl": "procps",
    "unshare": "util-linux",
}
_CNI_PACKAGE = "containernetworking-plugins"


class NodeUnavailableError(RuntimeError):
    """A real node cannot be had here; the message says why, and what to do."""


def why_impossible() -> str | None:
    """Why no real node can run on this machine, whatever is installed; None where one can."""
    if sys.platform != "linux":
        return f"a real node needs Linux, and this is {sys.platform}"
    if os.geteuid() != 0:
        return "a real node needs root, because it makes containers and networks"
    return None


def ensure_programs() -> None:
    """Install what is missing. Raises NodeUnavailableError."""
    if reason := why_impossible():
        raise NodeUnavailableError(reason)
    missing = _missing_packages()
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise NodeUnavailableError(f"install {', '.join(missing)} first: this machine has no apt-get to do it with")
    say(f"installing {', '.join(missing)} with apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", "--quiet", *arguments], env=environment, capture_output=True, text=True)
        if done.returncode and arguments != ["update"]:  # one repository out of reach need not matter
            raise NodeUnavailableError(f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-1000:]}{done.stderr}")
    if missing := _missing_packages():
        raise NodeUnavailableError(f"{', '.join(missing)} did not bring the programs that a node needs")


def cni_folder() -> Path | None:
    """Where the network plugins are."""
    return next((folder for folder in CNI_FOLDERS if (folder / "bridge").exists()), None)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command to its end and return what it printed; its words are in the error if it fails."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise NodeUnavailableError(
            f"{' '.join(arguments)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    return done.stdout


def say(message: str) -> None:
    """Tell whoever waits what is being done."""
    print(f"testbed: {message}", file=sys.stderr, flush=True)


def _missing_packages() -> list[str]:
    missing = {package for program, package in _PACKAGES.items() if shutil.which(program) is None}
    return sorted(missing | ({_CNI_PACKAGE} if cni_folder() is None else set()))
