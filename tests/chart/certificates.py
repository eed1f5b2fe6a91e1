"""Certificates as openssl reads them."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

from chart.rendering import Object


def certificate(secret: Object, folder: Path) -> str:
    """What openssl says of the certificate, verified by its authority."""
    for key in ("ca.crt", "tls.crt", "tls.key"):
        (folder / key).write_bytes(base64.b64decode(secret["data"][key]))
    subprocess.run(["openssl", "verify", "-CAfile", "ca.crt", "tls.crt"], cwd=folder, check=True, capture_output=True)
    command = ["openssl", "x509", "-in", "tls.crt", "-noout", "-text"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
