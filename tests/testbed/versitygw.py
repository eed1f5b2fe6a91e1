"""Build versitygw: an S3 server that keeps objects as files of a folder."""

from __future__ import annotations

from pathlib import Path

from .go_build import Recipe, build_once, required_version

MODULE = Path(__file__).parent / "versitygw"


def find_versitygw() -> Path:
    """The server, built once. Raises BinariesUnavailableError, BuildFailedError."""
    version = required_version(MODULE, "github.com/versity/versitygw")
    recipe = Recipe(f"versitygw {version}", MODULE, ".", "versitygw", "-s -w")
    folder = build_once(recipe, f"versitygw-{recipe.source_hash()}", "no S3 server: install Go so that it can be built")
    return folder / recipe.program
