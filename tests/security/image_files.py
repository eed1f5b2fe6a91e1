"""What the images are made from: their Dockerfiles, and what the locks under requirements/ have."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from script_modules import load

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = {"operator": ROOT / "operator" / "Dockerfile", "trainer": ROOT / "trainer-image" / "Dockerfile"}
FOLDER = ROOT / "requirements"
LOCKS = sorted(FOLDER.rglob("*.txt"))
CUDA = re.compile(r"^(nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+|triton)$")
"""What PyTorch's CUDA build needs, and its CPU build does not."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_of(name: str) -> list[Any]:
    entries = load("sbom").read_lock((FOLDER / f"{name}.txt").read_text())
    return list(entries)


def install(target: Path, name: str) -> Path:
    """What a lock has for this machine, by hash."""
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--require-hashes", f"--target={target}"]
    done = subprocess.run([*command, f"--requirement={FOLDER / name}.txt"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def on_linux(name: str) -> set[str]:
    """The packages that a lock has for the images: Linux, and the Python of the base."""
    text = re.sub(r"\\\n\s*", " ", (FOLDER / f"{name}.txt").read_text())
    lines = [line.partition(" --hash")[0] for line in text.splitlines() if "==" in line]
    image = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    image |= {"python_version": "3.13", "python_full_version": "3.13.14", "implementation_name": "cpython"}
    found = [Requirement(line.strip()) for line in lines]
    return {normal(one.name) for one in found if one.marker is None or one.marker.evaluate(image)}
