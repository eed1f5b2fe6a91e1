"""What the documents tell people to type is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.documented import blocks
from chart.rendering import FOLDER, RELEASE, ROOT, Chart, of_kind, one
from finetune_api.manifest import parse_job
from finetune_api.v1alpha1.scheduling import PodSpec
from testbed.prometheus import program

DOCS = [ROOT / "docs" / name for name in ("installing.md", "gitops.md", "monitoring.md")] + [FOLDER / "README.md"]
TEXT = {path.name: path.read_text() for path in DOCS}
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())


def documents(name: str) -> list[Any]:
    return [each for block in blocks(TEXT[name], "yaml") for each in yaml.safe_load_all(block)]


def test_every_value_that_is_named_is_one() -> None:
    text = "\n".join(TEXT.values())
    named = re.findall(r"--set\s([A-Za-z.]+)=", text) + re.findall(
        r"`((?:progress|tls(?!\.(?:crt|key)`)|metrics|health|networkPolicy|monitoring|admissionPolicy|image|trainer|crd|rbac)\.[A-Za-z.]+)(?:=[^`]*)?`",
        text,
    )
    assert len(named) > 10
    for path in named:
        found: Any = VALUES
        for key in path.split("."):
            assert key in found, path
            found = found[key]


def test_the_manifests_of_the_quick_starts_are_valid() -> None:
    jobs = re.findall(r"<<'END'\n(.*?)^END$", TEXT["installing.md"], re.MULTILINE | re.DOTALL)
    assert jobs
    for text in jobs:
        parse_job(yaml.safe_load(text))


def test_the_recipes_for_secrets_name_variables_that_a_job_may_have() -> None:
    examples = [yaml.safe_load(block)["spec"] for block in blocks((ROOT / "docs" / "data.md").read_text(), "yaml")]
    given = [PodSpec.model_validate(spec["pod"]).env_from_secrets for spec in examples if "pod" in spec]
    assert {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} <= {each.name for variables in given for each in variables}


def test_the_values_of_the_examples_are_taken(chart: Chart) -> None:
    digest = "sha256:" + "0a" * 32
    examples = [each for name in ("installing.md", "gitops.md") for each in documents(name) if set(each) <= set(VALUES)]
    assert len(examples) == 4
    for values in examples:
        for image in (values.get("image", {}), values.get("trainer", {}).get("image", {})):
            if "digest" in image:
                image["digest"] = digest
        assert chart.render(values)


def test_the_values_for_kube_prometheus_stack_say_all_that_it_selects_by(chart: Chart) -> None:
    [values] = [each for each in documents("monitoring.md") if set(each) <= set(VALUES)]
    found = chart.render(values)
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert one(found, kind)["metadata"]["labels"]["release"] == "monitoring"
    dashboards = [each for each in of_kind(found, "ConfigMap") if "dashboard" in each["metadata"]["name"]]
    assert len(dashboards) == 2
    assert all(each["metadata"]["labels"]["grafana_dashboard"] == "1" for each in dashboards)
    reader = {"kind": "ServiceAccount", "namespace": "monitoring", "name": "monitoring-kube-prometheus-prometheus"}
    assert reader in one(found, "ClusterRoleBinding", "finetune-operator-metrics-reader")["subjects"]


def test_the_metrics_reader_of_a_namespaced_release_is_named_as_is_said(chart: Chart) -> None:
    assert "`finetune-operator-finetune-system-metrics-reader`" in TEXT["monitoring.md"]
    assert one(
        chart.render({"watchNamespace": "team-a"}), "ClusterRole", "finetune-operator-finetune-system-metrics-reader"
    )


def test_objects_of_a_release_with_another_name_are_named_as_is_said(chart: Chart) -> None:
    assert "`ft-finetune-operator`" in TEXT["monitoring.md"]
    found = chart.render(release="ft")
    assert one(found, "Deployment", "ft-finetune-operator")["metadata"]["labels"]["app.kubernetes.io/name"] == RELEASE
    assert one(found, "ClusterRole", "ft-finetune-operator-metrics-reader")
    assert one(found, "Secret", "ft-finetune-operator-tls")


def test_prometheus_takes_the_scrape_config(tmp_path: Path) -> None:
    [found] = [each for each in documents("monitoring.md") if "scrape_configs" in each]
    assert found["scrape_configs"][0].pop("kubernetes_sd_configs")  # Debian's build has no such discovery
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(found))
    command = [program("promtool"), "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["installing.md", "gitops.md", "monitoring.md"])
def test_links_and_folders_are_there(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT[name]):
        assert (ROOT / "docs" / target).exists(), target
    for folder in re.findall(r"`?((?:manifests|helm|requirements)/[a-z][-a-z_/.]*[a-z])`?", TEXT[name]):
        assert (ROOT / folder).exists(), folder
