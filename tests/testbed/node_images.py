"""The images of a real node without a registry: a base of Debian packages, and ours from their Dockerfiles.

Each is made once and kept as an archive in the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .go_build import cache
from .node_machine import NodeUnavailableError, run, say

ROOT = Path(__file__).resolve().parents[2]
TRAINER_IMAGE = "localhost/finetune-trainer:testbed"
OPERATOR_IMAGE = "localhost/finetune-operator:testbed"
PAUSE_IMAGE = "localhost/pause:testbed"
LIBRARIES = "/opt/libraries"
"""Where the trainer's image has its libraries; its target `code` has none there."""

_BASE_IMAGE = "localhost/base:testbed"
# Of each image the folder of its Dockerfile, and what is copied into it.
_SOURCES = {
    TRAINER_IMAGE: ("trainer-image", ("operator/finetune_api", "trainer-image/finetune_trainer")),
    OPERATOR_IMAGE: ("operator", ("operator/finetune_api", "operator/finetune_operator")),
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_APT = Path("/etc/apt")
_MIRROR = re.compile(r"^(?:URIs:|deb(?: \[[^]]*])?)\s+(https?://\S+)", re.MULTILINE)


def archives() -> list[Path]:
    """The archives that hold the node's images, made when they are not there. Raises NodeUnavailableError."""
    folder = cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        base = _base(folder)
        return [base, _built(folder, base, TRAINER_IMAGE)]


def operator_archive() -> Path:
    """The archive of the operator's image, made when it is not there. Raises NodeUnavailableError."""
    folder = cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        return _built(folder, _base(folder), OPERATOR_IMAGE)


def base_image() -> str:
    """The base image as `--build-arg=BASE` takes it, made when it is not there. Raises NodeUnavailableError."""
    folder = cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        return f"docker-archive:{_base(folder)}:{_BASE_IMAGE}"


def libraries() -> Path:
    """The libraries of this environment, compiled: pods only read them, and could not keep what they compile."""
    folder = Path(sysconfig.get_path("purelib"))
    say("compiling this environment's libraries for the pods: a minute the first time, seconds later")
    # Not checked, because some packages have files that are for other versions of Python.
    subprocess.run([sys.executable, "-m", "compileall", "-qq", "-j0", str(folder)], check=False)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _base(folder: Path) -> Path:
    """The machine's own release with its Python, which is the one that can use the machine's libraries."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    found = sorted(folder.glob(f"base-{release}-python*.tar"))
    archive = found[0] if found else _make_base(folder, release)
    python = archive.stem.rpartition("python")[2]
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != ours:
        raise NodeUnavailableError(
            f"the pods' Python is this machine's own, {python}, and cannot use libraries installed for {ours}:"
            " make the environment with the system's Python (rm -r .venv, then make PYTHON=/usr/bin/python3 ...)"
        )
    return archive


def _make_base(folder: Path, release: str) -> Path:
    say(f"making a base image of {release} packages with debootstrap: one to two minutes, once")
    with tempfile.TemporaryDirectory(dir=folder, prefix="base-") as name:
        root = Path(name) / "root"
        run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", release, root, _mirror(release))
        for path in [*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")]:
            path.unlink()
        python = (root / "usr/bin/python3").readlink().name.removeprefix("python")
        layer = Path(name) / "layer.tar"
        # Programs of a container are not to find devices that it was not given.
        run("tar", "--create", f"--file={layer}", "--numeric-owner", "--exclude=./dev/*", f"--directory={root}", ".")
        unfinished = Path(name) / "base.tar"
        _write_archive(unfinished, layer, {_BASE_IMAGE: None, PAUSE_IMAGE: ["/bin/sleep", "infinity"]})
        return unfinished.rename(folder / f"base-{release}-python{python}.tar")


def _mirror(release: str) -> str:
    """Where this machine has its own packages from."""
    for path in [*sorted((_APT / "sources.list.d").glob("*")), _APT / "sources.list"]:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for paragraph in re.split(r"\n\s*\n", text) if path.suffix == ".sources" else text.splitlines():
            mirror = _MIRROR.search(paragraph)
            if mirror and re.search(rf"\b{release}\s", paragraph + "\n"):
                return mirror[1]
    raise NodeUnavailableError(
        f"no apt source for {release!r} under {_APT}: a base image can be made on Debian and Ubuntu"
    )


def _write_archive(path: Path, layer: Path, images: dict[str, list[str] | None]) -> None:
    """A docker-archive of images that have the same one layer and differ in what they start."""
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = []
    with tarfile.open(path, "w") as archive:
        archive.add(layer, f"{digest}.tar")
        for image, entrypoint in images.items():
            config = json.dumps(
                {
                    "architecture": _ARCHITECTURES[platform.machine()],
                    "os": "linux",
                    "config": {"Entrypoint": entrypoint, "Env": [f"PATH={_PATH}"]},
                    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                }
            ).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(archive, name, config)
            manifest.append({"Config": name, "RepoTags": [image], "Layers": [f"{digest}.tar"]})
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _built(folder: Path, base: Path, image: str) -> Path:
    """The Dockerfile's target `code`: everything but the libraries, which the node lends."""
    name = image.partition("/")[2].partition(":")[0]
    archive = folder / f"{name}-{_source_hash(base, image)}.tar"
    if archive.exists():
        return archive
    say(f"building {image} with buildah")
    for old in folder.glob(f"{name}-*.tar"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=folder, prefix="buildah-") as scratch:
        storage = (f"--root={scratch}/root", f"--runroot={scratch}/run", "--storage-driver=vfs")
        run(
            *("buildah", *storage, "build", "--isolation=chroot", "--target=code", f"--file={_dockerfile(image)}"),
            *(f"--build-arg=BASE=docker-archive:{base}:{_BASE_IMAGE}", f"--tag={image}", ROOT),
        )
        unfinished = Path(scratch) / "image.tar"
        run("buildah", *storage, "push", image, f"docker-archive:{unfinished}:{image}")
        unfinished.rename(archive)
    return archive


def _dockerfile(image: str) -> Path:
    return ROOT / _SOURCES[image][0] / "Dockerfile"


def _source_hash(base: Path, image: str) -> str:
    digest = hashlib.sha256(base.name.encode())
    files = [path for folder in _SOURCES[image][1] for path in (ROOT / folder).rglob("*.py")]
    for path in [_dockerfile(image), *sorted(files)]:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
