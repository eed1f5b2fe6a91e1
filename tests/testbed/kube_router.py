"""Build kube-router's network policy controller: what makes NetworkPolicies more than words on a real node."""

from __future__ import annotations

from pathlib import Path

from .go_build import build_program


def find_kube_router() -> Path:
    """The controller, built once. Raises BinariesUnavailableError, BuildFailedError."""
    return build_program("kube-router", "kube-router", "github.com/cloudnativelabs/kube-router/v2")
