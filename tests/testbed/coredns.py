"""Build CoreDNS: the cluster DNS of a real node."""

from __future__ import annotations

from pathlib import Path

from .go_build import build_program


def find_coredns() -> Path:
    """CoreDNS, built once. Raises BinariesUnavailableError, BuildFailedError."""
    return build_program("CoreDNS", "coredns", "github.com/coredns/coredns")
