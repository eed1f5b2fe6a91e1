"""Build versitygw: an S3 server that keeps objects as files of a folder."""

from __future__ import annotations

from pathlib import Path

from .go_build import build_program


def find_versitygw() -> Path:
    """The server, built once. Raises BinariesUnavailableError, BuildFailedError."""
    return build_program("S3 server", "versitygw", "github.com/versity/versitygw")
