"""Build CoreDNS: the cluster DNS of a real node."""

from __future__ import annotations

import shutil
from pathlib import Path

from .binaries import BinariesUnavailableError
from .go_build import Recipe, build_once, cache, missing_from, required_version

MODULE = Path(__file__).parent / "coredns"


def find_coredns() -> Path:
    """CoreDNS, built once. Raises BinariesUnavailableError, BuildFailedError."""
    version = required_version(MODULE, "github.com/coredns/coredns")
    recipe = Recipe(f"CoreDNS {version}", MODULE, ".", "coredns", "-s -w")
    folder = cache() / f"coredns-{recipe.source_hash()}"
    if missing_from(folder, [recipe.program]):
        go = shutil.which("go")
        if go is None:
            raise BinariesUnavailableError("no CoreDNS: install Go so that it can be built")
        build_once(go, recipe, folder)
    return folder / recipe.program
