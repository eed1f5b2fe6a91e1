"""Find etcd, kube-apiserver and kubectl for the tests, or build them.

The order is: the folder that KUBEBUILDER_ASSETS names, then what setup-envtest
has already downloaded, then a build of the Go module beside this file.
KUBERNETES_MINOR chooses another minor than the pinned one, of those that have a
module too; these have the control plane only, no node.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from .go_build import BinariesUnavailableError as BinariesUnavailableError
from .go_build import BuildFailedError as BuildFailedError
from .go_build import Recipe, build_once, missing_from, required_version

GO_MODULE = Path(__file__).parent / "go"
NAMES = ("etcd", "kube-apiserver", "kubectl")
# These come with a build only: setup-envtest does not have them.
CONTROL_PLANE_NAMES = (*NAMES, "kube-controller-manager", "kube-scheduler")
NODE_NAMES = ("kubelet", "kube-proxy") if sys.platform == "linux" else ()
BUILT_NAMES = (*CONTROL_PLANE_NAMES, *NODE_NAMES)
PROGRAM = "testbed"

MINOR = "KUBERNETES_MINOR"
FROM_ENVIRONMENT = "KUBEBUILDER_ASSETS"
FROM_ENVTEST = "setup-envtest"
FROM_BUILD = "built from source"


class BrokenAssetsError(RuntimeError):
    """KUBEBUILDER_ASSETS names a folder that lacks a program."""


class UnknownMinorError(RuntimeError):
    """KUBERNETES_MINOR names a minor that has no module here."""


@dataclass(frozen=True)
class Binaries:
    """The folder that holds the programs, and how it was found."""

    folder: Path
    origin: str

    @property
    def etcd(self) -> Path:
        return self.folder / "etcd"

    @property
    def kube_apiserver(self) -> Path:
        return self.folder / "kube-apiserver"

    @property
    def kubectl(self) -> Path:
        return self.folder / "kubectl"


def find(names: tuple[str, ...] = NAMES) -> Binaries:
    """Return the programs, building them first when nothing else has them all."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        folder = Path(assets).absolute()
        if missing := _missing_from(folder):
            raise BrokenAssetsError(f"KUBEBUILDER_ASSETS={assets} lacks {', '.join(missing)}")
        if not _missing_from(folder, names):
            return Binaries(folder, FROM_ENVIRONMENT)
    elif (envtest := _newest_envtest()) and not _missing_from(envtest, names):
        return Binaries(envtest, FROM_ENVTEST)
    if without := sorted(set(names) - set(_built_names())):
        raise BinariesUnavailableError(f"Kubernetes {minor_version()} is built without {', '.join(without)}")
    return Binaries(_built(), FROM_BUILD)


def kubernetes_version() -> str:
    """Return the Kubernetes version that the chosen go.mod pins, such as v1.36.3."""
    return required_version(_module(), "k8s.io/kubernetes")


def minor_version() -> str:
    """Return the chosen version without its patch, such as v1.36."""
    return kubernetes_version().rpartition(".")[0]


def _module() -> Path:
    """Return the module of the minor that KUBERNETES_MINOR names, or else the pinned one."""
    pinned = required_version(GO_MODULE, "k8s.io/kubernetes").rpartition(".")[0].removeprefix("v")
    modules = {path.name.removeprefix("go-"): path for path in GO_MODULE.parent.glob("go-*")} | {pinned: GO_MODULE}
    minor = os.environ.get(MINOR) or pinned
    if minor not in modules:
        raise UnknownMinorError(f"{MINOR}={minor} is none of {', '.join(sorted(modules))}")
    return modules[minor]


def _built_names() -> tuple[str, ...]:
    return BUILT_NAMES if _module() == GO_MODULE else CONTROL_PLANE_NAMES


def _missing_from(folder: Path, names: tuple[str, ...] = NAMES) -> list[str]:
    return missing_from(folder, names)


def _newest_envtest() -> Path | None:
    """Return setup-envtest's newest patch of the chosen minor version, if any."""
    suffix = f"-{sys.platform}-{_go_architecture()}"
    prefix = minor_version().removeprefix("v") + "."
    found: list[tuple[int, Path]] = []
    for folder in _envtest_store().glob(f"{prefix}*{suffix}"):
        patch = folder.name.removeprefix(prefix).removesuffix(suffix)
        if patch.isdecimal() and not _missing_from(folder):
            found.append((int(patch), folder))
    return max(found)[1] if found else None


def _envtest_store() -> Path:
    if sys.platform == "darwin":
        support = Path.home() / "Library" / "Application Support"
        return support / "io.kubebuilder.envtest" / "k8s"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "kubebuilder-envtest" / "k8s"


def _go_architecture() -> str:
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _built() -> Path:
    """Return the folder of the built programs, building them at most once."""
    return build_once(
        _recipe(),
        _source_hash(),
        "no etcd, kube-apiserver and kubectl for the tests. Either set"
        " KUBEBUILDER_ASSETS to a folder that holds them (setup-envtest use"
        f" -p path {minor_version().removeprefix('v')}.x prints one), or install"
        f" Go so that they can be built from {_module()}.",
    )


def _recipe() -> Recipe:
    what = f"etcd and Kubernetes {kubernetes_version()}"
    return Recipe(what, _module(), ".", PROGRAM, _linker_flags(), _built_names())


def _source_hash() -> str:
    return _recipe().source_hash()


def _linker_flags() -> str:
    """Stamp the version, which otherwise reads v0.0.0-master."""
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    base = "k8s.io/component-base/version"
    variables = {
        f"{base}.gitVersion": version,
        f"{base}.gitMajor": major,
        f"{base}.gitMinor": minor,
        "k8s.io/client-go/pkg/version.gitVersion": version,
    }
    stamps = [f"-X {name}={value}" for name, value in variables.items()]
    return " ".join(["-s", "-w", *stamps])
