"""Buildah for the tests that build images, and a base of this machine's own: no registry is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator

import pytest

from testbed.node_images import base_image
from testbed.node_machine import NodeUnavailableError

_GIVEN = {
    "build": ("--isolation=chroot", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"),
    "run": ("--isolation=chroot",),
}
Buildah = Callable[..., str]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah with a storage of its own."""
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("buildah: needs buildah and root")
    folder = tmp_path_factory.mktemp("buildah")
    storage = [f"--root={folder}/root", f"--runroot={folder}/run"]

    def run(command: str, *arguments: str, code: int = 0) -> str:
        given = [*_GIVEN.get(command, ()), *arguments]
        done = subprocess.run(["buildah", *storage, command, *given], capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout + (done.stderr if code else "")

    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def base() -> str:
    """A base with Python, as `--build-arg=BASE` takes it."""
    try:
        return base_image()
    except NodeUnavailableError as error:
        pytest.skip(f"a base image cannot be made: {error}")


@pytest.fixture(scope="module")
def base_with_pip(tmp_path_factory: pytest.TempPathFactory, buildah: Buildah, base: str) -> str:
    """A base that libraries can be installed on; they come from the index, by hash."""
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    with_pip = tmp_path_factory.mktemp("base") / "Dockerfile"
    with_pip.write_text(
        "ARG BASE\nFROM ${BASE}\nCOPY pip /usr/lib/python3/dist-packages/pip\n"
        f"ENV PIP_CERT={certificates} SSL_CERT_FILE={certificates}\n"
    )
    purelib = sysconfig.get_path("purelib")
    buildah("build", "--squash", f"--file={with_pip}", f"--build-arg=BASE={base}", "--tag=localhost/base:test", purelib)
    return "localhost/base:test"
