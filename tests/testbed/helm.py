"""Find helm, or build it."""

from __future__ import annotations

import shutil
from pathlib import Path

from .go_build import Recipe, build_once, required_version

MODULE = Path(__file__).parent / "helm"
PACKAGE = "helm.sh/helm/v3/cmd/helm"


def find_helm() -> Path:
    """Helm on the PATH, or else one that is built once. Raises BinariesUnavailableError, BuildFailedError."""
    if installed := shutil.which("helm"):
        return Path(installed)
    recipe = _recipe()
    without_go = "no helm: install it, or install Go so that it can be built"
    return build_once(recipe, f"helm-{recipe.source_hash()}", without_go) / recipe.program


def _recipe() -> Recipe:
    version = required_version(MODULE, "helm.sh/helm/v3")
    minor = required_version(MODULE, "k8s.io/client-go").split(".")[1]
    stamps = {
        "helm.sh/helm/v3/internal/version.version": version,
        # As Helm's own build does: without them it takes clusters for Kubernetes 1.20 when it asks none.
        "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMajor": "1",
        "helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor": minor,
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor": "1",
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor": minor,
    }
    flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in stamps.items())])
    return Recipe(f"helm {version}", MODULE, PACKAGE, "helm", flags)
