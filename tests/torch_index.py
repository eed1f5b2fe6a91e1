"""A stand-in for PyTorch's own index, which tests do not reach: its layout over HTTP, with wheels that hold no PyTorch.

What is real is what is done with it: uv locks from it, pip and uv install from it by hash.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

REQUIRES = ("filelock", "typing-extensions>=4.13.0", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2", "fsspec>=0.8.5")
"""What PyTorch needs besides CUDA."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64", "win_amd64")


@dataclass(frozen=True)
class TorchIndex:
    """Where it is, and the SHA-256 of each wheel of a version."""

    url: str
    hashes: dict[str, list[str]]


@contextmanager
def serving(folder: Path, *versions: str, requires: tuple[str, ...] = REQUIRES) -> Iterator[TorchIndex]:
    """Serve wheels of these versions, for each platform."""
    packages = folder / "whl" / "cpu" / "torch"
    packages.mkdir(parents=True)
    hashes: dict[str, list[str]] = {version: [] for version in versions}
    links = []
    for version in versions:
        for platform in PLATFORMS:
            wheel = _wheel(packages, version, platform, requires)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            hashes[version].append(digest)
            links.append(f'<a href="/whl/cpu/torch/{quote(wheel.name)}#sha256={digest}">{wheel.name}</a><br/>')
    (packages / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield TorchIndex(f"http://127.0.0.1:{server.server_address[1]}/whl/cpu", hashes)
    finally:
        server.shutdown()
        server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _wheel(folder: Path, version: str, platform: str, requires: tuple[str, ...]) -> Path:
    about = [f"Metadata-Version: 2.4\nName: torch\nVersion: {version}\nLicense-Expression: BSD-3-Clause"]
    about += [f"Requires-Dist: {each}" for each in requires]
    files = {
        "torch/__init__.py": f"__version__ = {version!r}\n",
        f"torch-{version}.dist-info/METADATA": "\n".join([*about, ""]),
        f"torch-{version}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-{platform}\n",
    }
    files[f"torch-{version}.dist-info/RECORD"] = "".join(f"{name},,\n" for name in files)
    wheel = folder / f"torch-{version}-py3-none-{platform}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel
