"""The kustomizations and the chart make the same objects."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from chart.rendering import Chart, Object, find_kubectl, kustomize
from testbed.binaries import find
from testbed.needed import found

SECRET = {"tls": {"source": "Secret"}}
PAIRS = {
    "base": SECRET,
    "overlays/namespaced": {**SECRET, "watchNamespace": "finetune-jobs"},
    "overlays/monitoring": {**SECRET, "monitoring": {"serviceMonitor": {"enabled": True}}},
}
HELMS_OWN = {"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "app.kubernetes.io/instance"}


@pytest.fixture(scope="session")
def kubectl() -> str:
    if installed := find_kubectl():
        return installed
    return str(found(find).kubectl)


def normalised(found: list[Object]) -> dict[str, Object]:
    """Objects by kind and name, without the labels and annotations that only Helm has."""

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(each) for each in value]
        if isinstance(value, dict):
            return {key: without(inner) for key, inner in value.items() if key not in HELMS_OWN}
        return value

    by_name = {}
    for each in copy.deepcopy(found):
        if each["kind"] == "Namespace":  # Helm's --create-namespace
            continue
        each["metadata"].get("annotations", {}).pop("helm.sh/resource-policy", None)
        if not each["metadata"].get("annotations", True):
            del each["metadata"]["annotations"]
        if each["kind"] == "Deployment":
            each["spec"]["template"]["spec"]["containers"][0]["env"].sort(key=lambda entry: entry["name"])
        by_name["/".join((each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]))] = without(
            each
        )
    return by_name


@pytest.mark.parametrize("folder", PAIRS)
def test_chart_and_kustomization_are_equal(chart: Chart, kubectl: str, folder: str) -> None:
    ours = normalised(kustomize(folder, kubectl))
    helms = normalised(chart.render(PAIRS[folder]))
    assert set(ours) == set(helms)
    for name, each in ours.items():
        assert each == helms[name], name


def test_every_namespace_of_the_kustomizations_is_restricted(kubectl: str) -> None:
    for folder in PAIRS:
        namespaces = [each for each in kustomize(folder, kubectl) if each["kind"] == "Namespace"]
        assert namespaces
        for each in namespaces:
            assert each["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
