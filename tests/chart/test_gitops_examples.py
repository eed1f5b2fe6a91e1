"""docs/examples/gitops can be copied as it is: what its objects name is there, and the parts fit together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.documented import EXAMPLES
from chart.rendering import NAMESPACE, RELEASE, ROOT, Chart, Object, kustomize, objects, of_kind, one
from finetune_api.manifest import parse_job

PLATFORM = EXAMPLES / "gitops"
VALUES = PLATFORM / "finetune" / "operator" / "values.yaml"
FOLDERS = ("finetune/operator", "finetune/jobs")
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
BY_URL = {"https://git.example.com/platform.git": PLATFORM, "https://git.example.com/finetune-operator.git": ROOT}
"""What is in the repositories that the examples name."""


def loaded(path: Path) -> list[Object]:
    return objects(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def flux(kubectl: str) -> list[Object]:
    """Everything that is in the cluster once Flux has done its work."""
    return loaded(PLATFORM / "flux" / "finetune.yaml") + [
        each for folder in FOLDERS for each in kustomize(str(PLATFORM / folder), kubectl)
    ]


@pytest.fixture(scope="module")
def applications() -> dict[str, Object]:
    """Argo CD's, by name."""
    return {each["metadata"]["name"]: each["spec"] for each in loaded(PLATFORM / "argocd" / "finetune.yaml")}


@pytest.fixture(scope="module")
def jobs(kubectl: str) -> list[Object]:
    return kustomize(str(PLATFORM / "finetune/jobs"), kubectl)


def source_of(flux: list[Object], user: Object, reference: Object) -> Path:
    """The folder of the repository that is named, which has to be there beside its user."""
    [found] = [
        each
        for each in of_kind(flux, reference["kind"])
        if each["metadata"] == {"name": reference["name"], "namespace": user["metadata"]["namespace"]}
    ]
    return BY_URL[found["spec"]["url"]]


def uris(value: Any) -> set[str]:
    """Every claim that a job names."""
    return set(re.findall(r"pvc://([a-z0-9-]+)/", yaml.safe_dump(value)))


def test_every_file_is_used(flux: list[Object]) -> None:
    """No file is there that no kustomization and no tool names."""
    named = {PLATFORM / "argocd" / "finetune.yaml", PLATFORM / "flux" / "finetune.yaml"}
    for folder in (PLATFORM / each for each in FOLDERS):
        [made] = loaded(folder / "kustomization.yaml")
        files = [*made["resources"], *made.get("configurations", [])]
        files += [file for each in made.get("configMapGenerator", []) for file in each["files"]]
        named |= {folder / "kustomization.yaml", *(folder / file for file in files)}
    assert named == {path for path in PLATFORM.rglob("*") if path.is_file()}


def test_flux_finds_every_path(flux: list[Object]) -> None:
    users = of_kind(flux, "Kustomization")
    assert {each["spec"]["path"] for each in users} == {f"./{folder}" for folder in FOLDERS}
    for each in users:
        assert (source_of(flux, each, each["spec"]["sourceRef"]) / each["spec"]["path"] / "kustomization.yaml").exists()
    release = one(flux, "HelmRelease")
    chart = release["spec"]["chart"]["spec"]
    assert (source_of(flux, release, chart["sourceRef"]) / chart["chart"] / "Chart.yaml").exists()


def test_flux_makes_the_jobs_when_the_release_is_ready(flux: list[Object], kubectl: str) -> None:
    jobs, operator = one(flux, "Kustomization", "finetune-jobs"), one(flux, "Kustomization", "finetune-operator")
    assert jobs["spec"]["dependsOn"] == [{"name": "finetune-operator"}]
    assert jobs["metadata"]["namespace"] == operator["metadata"]["namespace"]
    assert operator["spec"]["wait"] is True
    assert of_kind(kustomize(str(PLATFORM / operator["spec"]["path"]), kubectl), "HelmRelease")


def test_flux_gives_the_chart_the_values(flux: list[Object], chart: Chart) -> None:
    release = one(flux, "HelmRelease")
    [reference] = release["spec"]["valuesFrom"]
    given = one(flux, reference["kind"], reference["name"])
    assert given["metadata"]["namespace"] == release["metadata"]["namespace"] == NAMESPACE
    assert release["metadata"]["name"] == RELEASE
    values = yaml.safe_load(given["data"]["values.yaml"])
    assert values == yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    kinds = {each["kind"] for each in chart.render(values)}
    assert kinds >= {"Certificate", "ServiceMonitor", "PrometheusRule", "CustomResourceDefinition"}
    # Rendered without the cluster, a certificate of Helm's own would be another one each time.
    assert "Secret" not in kinds


def test_argo_finds_every_path(applications: dict[str, Object]) -> None:
    [chart, config] = applications["finetune-operator"]["sources"]
    assert (BY_URL[chart["repoURL"]] / chart["path"] / "Chart.yaml").exists()
    [values] = chart["helm"]["valueFiles"]
    assert BY_URL[config["repoURL"]] / values.removeprefix(f"${config['ref']}/") == VALUES
    source = applications["finetune-jobs"]["source"]
    assert (BY_URL[source["repoURL"]] / source["path"] / "kustomization.yaml").exists()


def test_the_chart_is_the_version_that_is_named(applications: dict[str, Object], flux: list[Object]) -> None:
    version = yaml.safe_load((ROOT / "helm" / "finetune-operator" / "Chart.yaml").read_text())["version"]
    assert applications["finetune-operator"]["sources"][0]["targetRevision"] == f"v{version}"
    assert one(flux, "GitRepository", "finetune-operator")["spec"]["ref"] == {"tag": f"v{version}"}


def test_every_namespace_is_restricted_with_both(applications: dict[str, Object], flux: list[Object]) -> None:
    made = {each["metadata"]["name"]: each["metadata"]["labels"] for each in of_kind(flux, "Namespace")}
    assert made == {NAMESPACE: RESTRICTED, "team-a": RESTRICTED}
    # team-a's is among the jobs, for both.
    operator = applications["finetune-operator"]
    assert operator["destination"]["namespace"] == NAMESPACE
    assert operator["syncPolicy"]["managedNamespaceMetadata"]["labels"] == RESTRICTED
    assert "CreateNamespace=true" in operator["syncPolicy"]["syncOptions"]


def test_the_jobs_are_valid_and_have_their_claims(jobs: list[Object], applications: dict[str, Object]) -> None:
    tuned = of_kind(jobs, "FineTuneJob")
    claims = {each["metadata"]["name"] for each in of_kind(jobs, "PersistentVolumeClaim")}
    assert tuned
    for each in tuned:
        assert "ttlSecondsAfterFinished" not in parse_job(each).spec.model_dump(by_alias=True, exclude_none=True)
        assert uris(each["spec"]) == claims
    spaces = {each["metadata"]["namespace"] for each in jobs if each["kind"] != "Namespace"}
    assert spaces == {applications["finetune-jobs"]["destination"]["namespace"]}
