"""Find etcd, kube-apiserver and kubectl for the tests, or build them.

The order is: the folder that KUBEBUILDER_ASSETS names, then what setup-envtest
has already downloaded, then a build of the Go module beside this file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

GO_MODULE = Path(__file__).parent / "go"
NAMES = ("etcd", "kube-apiserver", "kubectl")
# These come with a build only: setup-envtest does not have them.
CONTROL_PLANE_NAMES = (*NAMES, "kube-controller-manager", "kube-scheduler")
NODE_NAMES = ("kubelet", "kube-proxy") if sys.platform == "linux" else ()
BUILT_NAMES = (*CONTROL_PLANE_NAMES, *NODE_NAMES)
PROGRAM = "testbed"
PROGRESS_SECONDS = 30.0

FROM_ENVIRONMENT = "KUBEBUILDER_ASSETS"
FROM_ENVTEST = "setup-envtest"
FROM_BUILD = "built from source"


class BinariesUnavailableError(RuntimeError):
    """There are no binaries and no Go to build them with."""


class BrokenAssetsError(RuntimeError):
    """KUBEBUILDER_ASSETS names a folder that lacks a program."""


class BuildFailedError(RuntimeError):
    """The Go build ended with an error."""


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
    return Binaries(_built(), FROM_BUILD)


def kubernetes_version() -> str:
    """Return the Kubernetes version that go.mod pins, such as v1.36.3."""
    text = (GO_MODULE / "go.mod").read_text(encoding="utf-8")
    match = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"{GO_MODULE / 'go.mod'} does not require k8s.io/kubernetes")
    return match.group(1)


def minor_version() -> str:
    """Return the pinned version without its patch, such as v1.36."""
    return kubernetes_version().rpartition(".")[0]


def _missing_from(folder: Path, names: tuple[str, ...] = NAMES) -> list[str]:
    return [name for name in names if not os.access(folder / name, os.X_OK)]


def _newest_envtest() -> Path | None:
    """Return setup-envtest's newest patch of the pinned minor version, if any."""
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
    folder = cache() / _source_hash()
    if not _missing_from(folder, BUILT_NAMES):
        return folder
    go = shutil.which("go")
    if go is None:
        raise BinariesUnavailableError(
            "no etcd, kube-apiserver and kubectl for the tests. Either set"
            " KUBEBUILDER_ASSETS to a folder that holds them (setup-envtest use"
            f" -p path {minor_version().removeprefix('v')}.x prints one), or install"
            f" Go so that they can be built from {GO_MODULE}."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if _missing_from(folder, BUILT_NAMES):
            _build(go, folder)
    return folder


def cache() -> Path:
    """Where what is made once is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator" / "testbed"


def _source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(GO_MODULE.glob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another process that builds the Kubernetes programs")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(go: str, folder: Path) -> None:
    """Build into a folder beside the final one, then rename it into place."""
    started = time.monotonic()
    _say(f"building etcd and Kubernetes {kubernetes_version()} with {go}: many minutes the first time, seconds later")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as name:
        scratch = Path(name)
        output = scratch / "bin"
        output.mkdir()
        with (scratch / "build.log").open("w+b") as log:
            _run_go(go, output / PROGRAM, log, started)
        for link in BUILT_NAMES:
            (output / link).symlink_to(PROGRAM)
        # What is there lacks a program, or nobody would build.
        shutil.rmtree(folder, ignore_errors=True)
        output.rename(folder)
    _say(f"built in {time.monotonic() - started:.0f} s: {folder}")


def _run_go(go: str, output: Path, log: IO[bytes], started: float) -> None:
    command = [go, "build", "-trimpath", "-buildvcs=false"]
    command += ["-ldflags", _linker_flags(), "-o", str(output), "."]
    # No C compiler is needed, and no go.work above this folder interferes.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    with subprocess.Popen(command, cwd=GO_MODULE, env=environment, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            while _still_running(process):
                elapsed = time.monotonic() - started
                _say(f"still building the Kubernetes programs ({elapsed:.0f} s)")
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        log.seek(0)
        tail = log.read().decode(errors="replace")[-4000:]
        raise BuildFailedError(f"{' '.join(command)} in {GO_MODULE} ended with {process.returncode}:\n{tail}")


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=PROGRESS_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


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


def _say(message: str) -> None:
    print(f"testbed: {message}", file=sys.stderr, flush=True)
