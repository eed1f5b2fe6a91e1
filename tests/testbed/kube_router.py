"""Build kube-router's network policy controller: what makes NetworkPolicies more than words on a real node."""

from __future__ import annotations

from pathlib import Path

from .go_build import Recipe, build_once, required_version

MODULE = Path(__file__).parent / "kube-router"


def find_kube_router() -> Path:
    """The controller, built once. Raises BinariesUnavailableError, BuildFailedError."""
    version = required_version(MODULE, "github.com/cloudnativelabs/kube-router/v2")
    recipe = Recipe(f"kube-router {version}", MODULE, ".", "kube-router", "-s -w")
    folder = build_once(
        recipe, f"kube-router-{recipe.source_hash()}", "no kube-router: install Go so that it can be built"
    )
    return folder / recipe.program
