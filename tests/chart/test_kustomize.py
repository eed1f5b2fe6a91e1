"""The kustomizations and the chart make the same objects."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from chart.documented import EXAMPLES
from chart.rendering import MANIFESTS, NAMESPACE, Chart, Object, kustomize, of_kind, one

SECRET = {"tls": {"source": "Secret"}}
PAIRS = {
    "base": SECRET,
    "overlays/namespaced": {**SECRET, "watchNamespace": "finetune-jobs"},
    "overlays/monitoring": {
        **SECRET,
        "monitoring": {
            # A name without a namespace, which no overlay could change.
            "serviceMonitor": {"enabled": True, "serverName": "finetune-operator-metrics"},
            "prometheusRule": {"enabled": True},
            "dashboards": {"enabled": True},
        },
    },
}
OWN_IMAGES = {
    "image": {"repository": "registry.example.com/ml/finetune-operator"},
    "trainer": {"image": {"repository": "registry.example.com/ml/finetune-trainer"}},
}
# The folders of docs/examples/kustomize, and the values that make the same in the namespace ml-platform.
EXAMPLES_AS_VALUES = {
    "cluster": {**SECRET, **OWN_IMAGES},
    "one-namespace": {**SECRET, **OWN_IMAGES, "watchNamespace": "team-a"},
}
HELMS_OWN = {"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "app.kubernetes.io/instance"}


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
            env = each["spec"]["template"]["spec"]["containers"][0]["env"]
            expand(env, each["metadata"]["namespace"])
            env.sort(key=lambda entry: entry["name"])
        if each["kind"] == "PrometheusRule":  # the chart names its namespace; no overlay's `namespace:` would reach it
            for rule in (rule for group in each["spec"]["groups"] for rule in group["rules"]):
                rule["expr"] = rule["expr"].replace(f'namespace="{NAMESPACE}"', 'namespace=~".*"')
        by_name["/".join((each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]))] = without(
            each
        )
    return by_name


def expand(env: list[Object], namespace: str) -> None:
    """As the kubelet does: a value may name a variable that stands before it."""
    known: dict[str, str] = {}
    for entry in env:
        if "value" in entry:
            for name, value in known.items():
                entry["value"] = entry["value"].replace(f"$({name})", value)
        path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        known[entry["name"]] = namespace if path == "metadata.namespace" else entry.get("value", "")


@pytest.mark.parametrize("folder", PAIRS)
def test_chart_and_kustomization_are_equal(chart: Chart, kubectl: str, folder: str) -> None:
    ours = normalised(kustomize(folder, kubectl))
    helms = normalised(chart.render(PAIRS[folder]))
    assert set(ours) == set(helms)
    for name, each in ours.items():
        assert each == helms[name], name


def elsewhere(folder: Path, text: str, kubectl: str) -> list[Object]:
    """What a kustomization of somebody's own makes."""
    (folder / "kustomization.yaml").write_text(text, encoding="utf-8")
    return kustomize(str(folder), kubectl)


def relative(folder: Path, target: str) -> str:
    """No absolute path is taken."""
    return os.path.relpath(MANIFESTS / target, folder.resolve())


def by_text(found: list[Object]) -> list[str]:
    return sorted(json.dumps(each, sort_keys=True) for each in found)


@pytest.mark.parametrize("target", ["base", "overlays/monitoring"])
def test_another_namespace_moves_everything(kubectl: str, tmp_path: Path, target: str) -> None:
    text = json.dumps({"namespace": "ml-platform", "resources": [relative(tmp_path, target)]})
    moved = elsewhere(tmp_path, text, kubectl)
    assert by_text(moved) == [each.replace(NAMESPACE, "ml-platform") for each in by_text(kustomize(target, kubectl))]
    env = one(moved, "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    expand(env, "ml-platform")
    [url] = [entry["value"] for entry in env if entry["name"] == "FINETUNE_PROGRESS_URL"]
    assert url in {f"https://{each['metadata']['name']}.ml-platform.svc:8443" for each in of_kind(moved, "Service")}


@pytest.mark.parametrize("name", EXAMPLES_AS_VALUES)
def test_examples_are_what_the_chart_makes_of_the_same_wishes(
    chart: Chart, kubectl: str, tmp_path: Path, name: str
) -> None:
    text = (EXAMPLES / "kustomize" / name / "kustomization.yaml").read_text(encoding="utf-8")
    url = r"https://github\.com/your-fork/finetune-operator//manifests/(\S+)\?ref=v0\.1\.0"
    text, replaced = re.subn(url, lambda found: relative(tmp_path, found[1]), text)
    assert replaced == 1
    found = elsewhere(tmp_path, text, kubectl)
    assert normalised(found) == normalised(chart.render(EXAMPLES_AS_VALUES[name], namespace="ml-platform"))
    assert not re.search("finetune-system|finetune-jobs|localhost/", json.dumps(found))
    assert {each["metadata"]["name"] for each in of_kind(found, "Namespace")} <= {"ml-platform", "team-a"}


def test_every_namespace_of_the_kustomizations_is_restricted(kubectl: str) -> None:
    for folder in PAIRS:
        namespaces = [each for each in kustomize(folder, kubectl) if each["kind"] == "Namespace"]
        assert namespaces
        for each in namespaces:
            assert each["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
