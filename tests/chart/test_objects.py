"""What the chart makes of its values, whatever they are: names, and which objects there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import FOLDER, Chart, Object, of_kind, one
from chart.value_sets import VALUE_SETS


def test_every_rendering_is_whole(rendered: list[Object]) -> None:
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in rendered]
    assert len(names) == len(set(names))
    for each in rendered:
        if each["kind"] != "CustomResourceDefinition":
            assert "app.kubernetes.io/managed-by" in each["metadata"]["labels"], each["metadata"]


def test_the_defaults_make_nothing_that_needs_another_operator(chart: Chart) -> None:
    kinds = {each["kind"] for each in chart.render()}
    assert kinds == {
        "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Deployment", "PodDisruptionBudget", "Role",
        "RoleBinding", "Secret", "Service", "ServiceAccount",
    }  # fmt: skip


def test_chart_and_code_have_one_version() -> None:
    meta = yaml.safe_load((FOLDER / "Chart.yaml").read_text())
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    assert f'version = "{meta["appVersion"]}"' in project


@pytest.mark.parametrize(
    ("options", "values", "name"),
    [
        ({"release": "finetune-operator"}, {}, "finetune-operator"),
        ({"release": "prod"}, {}, "prod-finetune-operator"),
        ({"release": "prod"}, {"nameOverride": "tuner"}, "prod-tuner"),
        ({"release": "prod"}, {"fullnameOverride": "tuner"}, "tuner"),
        ({"release": "r" * 53}, {}, "r" * 40),
    ],
)
def test_names(chart: Chart, options: dict[str, str], values: dict[str, Any], name: str) -> None:
    found = chart.render(values, **options)
    assert one(found, "Deployment")["metadata"]["name"] == name
    assert max(len(service["metadata"]["name"]) for service in of_kind(found, "Service")) <= 63


def test_two_namespaced_releases_of_one_name_share_nothing(chart: Chart) -> None:
    def identities(namespace: str) -> set[tuple[str, str, str]]:
        found = chart.render({"watchNamespace": namespace, "crd": {"install": False}}, namespace=namespace)
        return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found}

    assert not identities("team-a") & identities("team-b")


@pytest.mark.parametrize("values", ["existing-secret", "cert-manager", "silent", "monitored"])
def test_tools_that_ask_no_cluster_render_the_same_each_time(chart: Chart, values: str, tmp_path: Path) -> None:
    """Argo CD compares what it renders: only a self-signed certificate is another each time."""
    given = {"tls": {"source": "Secret"}, **VALUE_SETS[values]}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(given))
    command = ("template", "tuner", str(FOLDER), f"--values={tmp_path / 'values.yaml'}")
    assert chart.run(*command) == chart.run(*command)
