"""Build CoreDNS: the cluster DNS of a real node."""

from __future__ import annotations

from pathlib import Path

from .go_build import Recipe, build_once, required_version

MODULE = Path(__file__).parent / "coredns"


def find_coredns() -> Path:
    """CoreDNS, built once. Raises BinariesUnavailableError, BuildFailedError."""
    version = required_version(MODULE, "github.com/coredns/coredns")
    recipe = Recipe(f"CoreDNS {version}", MODULE, ".", "coredns", "-s -w")
    folder = build_once(recipe, f"coredns-{recipe.source_hash()}", "no CoreDNS: install Go so that it can be built")
    return folder / recipe.program
