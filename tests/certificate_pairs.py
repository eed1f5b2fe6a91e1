"""Certificates with their keys, made by openssl, for the tests of whoever serves TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
KEYS = {"EC": "ec -pkeyopt ec_paramgen_curve:prime256v1", "RSA": "rsa:2048", "Ed25519": "ed25519"}
_SIGNING = """
[ca]
default_ca = signing
[signing]
database = index
new_certs_dir = .
rand_serial = yes
default_md = default
policy = subject
[subject]
commonName = supplied
[authority]
basicConstraints = critical, CA:true
[server]
subjectAltName = DNS:localhost
[client]
extendedKeyUsage = clientAuth
[signer]
keyUsage = critical, keyCertSign
[any]
extendedKeyUsage = anyExtendedKeyUsage
[unknown]
1.2.3.4 = critical, ASN1:NULL
"""


def make_pair(folder: Path, *names: str, days: int = 1) -> Path:
    """A new self-signed certificate of these names (`DNS:localhost` by default) in a folder: tls.crt, tls.key."""
    folder.mkdir(parents=True, exist_ok=True)
    command = f"openssl req -x509 -newkey {KEYS['EC']} -nodes -days {days} -subj /CN=localhost"
    named = ["-addext", f"subjectAltName={','.join(names or ('DNS:localhost',))}"]
    files = ["-out", str(folder / "tls.crt"), "-keyout", str(folder / "tls.key")]
    subprocess.run([*command.split(), *named, *files], check=True, capture_output=True)
    return folder


def issue(
    folder: Path,
    ends: str,
    key: str = "EC",
    *,
    starts: str = "20200101000000Z",
    by: Path | None = None,
    kind: str = "server",
) -> Path:
    """A certificate and its key in a folder, as make_pair's, but with dates: signed by another folder's, or by itself.

    The kind is "server", which is localhost's, or "authority"; or one that clients which verify refuse: "client",
    "signer", "any" (purpose, which names no server's), or "unknown" (which none of them understands).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index").touch()
    (folder / "signing.cnf").write_text(_SIGNING)
    request = f"req -new -newkey {KEYS[key]} -nodes -keyout tls.key -out request -subj /CN={folder.name}"
    sign = f"ca -batch -notext -config signing.cnf -in request -out tls.crt -startdate {starts} -enddate {ends}"
    signer = ["-keyfile", str((by or folder) / "tls.key"), *(["-cert", str(by / "tls.crt")] if by else ["-selfsign"])]
    for command in (request.split(), [*sign.split(), "-extensions", kind, *signer]):
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder
