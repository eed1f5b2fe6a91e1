"""Certificates with their keys, made by openssl, for the tests of whoever serves TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def make_pair(folder: Path, *names: str) -> Path:
    """A new self-signed certificate of these names (`DNS:localhost` by default) in a folder: tls.crt, tls.key."""
    folder.mkdir(parents=True, exist_ok=True)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    named = ["-addext", f"subjectAltName={','.join(names or ('DNS:localhost',))}"]
    files = ["-out", str(folder / "tls.crt"), "-keyout", str(folder / "tls.key")]
    subprocess.run([*command.split(), *named, *files], check=True, capture_output=True)
    return folder
