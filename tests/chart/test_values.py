"""The chart's values: the schema is closed and names what values.yaml has, and what is wrong is refused by name."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import yaml

from chart.rendering import FOLDER, ROOT, Chart, RenderingError
from chart.value_sets import VALUE_SETS

VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
LABELS = ("monitoring", "dashboards", "labels")
"""A map of strings with a default; all others are empty."""
SCHEMA: dict[str, Any] = json.loads((FOLDER / "values.schema.json").read_text())


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMA["definitions"][reference.rpartition("/")[2]] if reference else schema


def paths(values: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key of values.yaml."""
    for key, value in values.items() if isinstance(values, dict) else ():
        yield (*at, key)
        yield from paths(value, (*at, key))


def value_at(path: tuple[str, ...]) -> Any:
    found: Any = VALUES
    for key in path:
        found = found[key]
    return found


SECTIONS = [
    (),
    *(path for path in paths(VALUES) if path != LABELS and value_at(path) and isinstance(value_at(path), dict)),
]


def schema_paths(schema: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every key that the schema names."""
    for key, inner in resolved(schema).get("properties", {}).items():
        yield (*at, key)
        yield from schema_paths(inner, (*at, key))


def objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for inner in schema.values():
            yield from objects_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from objects_in(inner)


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Values with one more or other value, and nothing else."""
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def refusal(chart: Chart, values: dict[str, Any]) -> str:
    with pytest.raises(RenderingError) as caught:
        chart.render(values)
    return str(caught.value)


def test_every_object_of_the_schema_is_closed() -> None:
    open_ones = [
        schema
        for schema in objects_in(SCHEMA)
        if schema.get("additionalProperties") not in (False, {"type": "string"})
        and schema is not SCHEMA["properties"]["global"]
    ]
    assert not open_ones


def test_schema_and_values_have_the_same_keys() -> None:
    # What an affinity may hold is Kubernetes' own, and by default it holds nothing.
    named = {path for path in schema_paths(SCHEMA) if path[:1] != ("affinity",) or len(path) == 1}
    assert named - {("global",)} == set(paths(VALUES)) - {(*LABELS, "grafana_dashboard")}


def test_every_value_is_explained_above_it() -> None:
    lines = (FOLDER / "values.yaml").read_text().splitlines()
    unexplained = [
        line
        for above, line in pairwise(lines)
        if line.strip() and not line.strip().startswith("#") and not above.strip().startswith("#")
    ]
    assert all(line.endswith(":") or "grafana_dashboard" in line for line in unexplained), unexplained


@pytest.mark.parametrize("path", SECTIONS, ids=".".join)
def test_unknown_keys_are_refused_by_name_at_every_level(chart: Chart, path: tuple[str, ...]) -> None:
    assert "replica_count" in refusal(chart, changed((*path, "replica_count"), 3))


def rendered_or_refused(chart: Chart, values: dict[str, Any]) -> str:
    try:
        return json.dumps(chart.render(values))
    except RenderingError as error:
        return str(error)


BLOCK = {"ipBlock": {"cidr": "10.0.0.1/32"}}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
WRONG = [
    ("replicas", "two", "replicas"),
    ("replicas", -1, "replicas"),
    ("workers", 0, "workers"),
    ("workers", 257, "workers"),
    ("leaseSeconds", 2, "leaseSeconds"),
    ("leaseSeconds", 15000, "leaseSeconds"),
    ("resyncSeconds", 0, "resyncSeconds"),
    ("resyncSeconds", 300000, "resyncSeconds"),
    ("watchNamespace", "Team_A", "watchNamespace"),
    ("watchNamespace", "a,b", "watchNamespace"),
    ("fullnameOverride", "x" * 41, "fullnameOverride"),
    ("metrics.port", 70000, "port"),
    ("health.port", 0, "port"),
    ("metrics.secure", "yes", "secure"),
    ("metrics.readers", ["prometheus"], "readers"),
    ("metrics.readers", [{"name": "prometheus"}], "namespace"),
    ("metrics.readers", [{"name": "prometheus", "namespace": ""}], "namespace"),
    ("progress.port", "8443", "port"),
    ("progress.url", "http://plain.example.com", "url"),
    ("progress.url", "https://with.example.com/path", "url"),
    ("progress.url", "https://someone@example.com", "url"),
    ("progress.url", "https://my_host:8443", "url"),
    ("progress.url", "https://example.com:99999", "url"),
    ("progress.url", "https://example.com?x", "url"),
    ("tls.source", "LetsEncrypt", "source"),
    ("tls.validityDays", 0, "validityDays"),
    ("image.repository", "", "repository"),
    ("image.repository", "with space", "repository"),
    ("image.repository", "finetune-operator:dev", "repository"),
    ("trainer.image.repository", "registry.example.com:5000/trainer:dev", "repository"),
    ("trainer.image.repository", "registry.example.com/trainer-", "repository"),
    ("trainer.image.repository", "registry.example.com//trainer", "repository"),
    ("image.digest", "0a0a", "digest"),
    ("image.pullPolicy", "Sometimes", "pullPolicy"),
    ("trainer.image.tag", "a b", "tag"),
    ("trainer.ephemeralStorage", "", "ephemeralStorage"),
    ("trainer.ephemeralStorage", "0Gi", "ephemeralStorage"),
    ("trainer.ephemeralStorage", "50 GB", "ephemeralStorage"),
    ("imagePullSecrets", [{"name": "registry"}], "imagePullSecrets"),
    ("resources.limits.memory", "1 GiB", "memory"),
    ("resources.limits.gpu", "1", "gpu"),
    ("tolerations", [{"operator": "In"}], "tolerations"),
    ("nodeSelector", {"pool": 1}, "nodeSelector"),
    ("networkPolicy.apiServer.ports", [], "ports"),
    ("networkPolicy.training.cidrs", ["everywhere"], "cidrs"),
    ("networkPolicy.training.namespaces", ["a", "a"], "namespaces"),
    ("networkPolicy.dns.ports", [], "ports"),
    ("networkPolicy.dns.cidrs", ["169.254.20.10"], "cidrs"),
    ("networkPolicy.training.extraEgress", [{}], "extraEgress"),
    ("networkPolicy.training.extraEgress", [{"to": []}], "extraEgress"),
    ("networkPolicy.training.extraEgress", [{"to": [{"podSelector": {"app": "minio"}}]}], "podSelector"),
    ("networkPolicy.training.extraEgress", [{"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}], "cidr"),
    ("networkPolicy.training.extraEgress", [{"to": [{**BLOCK, "podSelector": {}}]}], "extraEgress"),
    ("networkPolicy.training.extraEgress", [{"to": [BLOCK], "ports": [{"port": 0}]}], "port"),
    ("networkPolicy.training.extraEgress", [{"from": [BLOCK]}], "from"),
    ("networkPolicy.extraIngress", [{"from": [BLOCK], "ports": [{"endPort": 9}]}], "ports"),
    ("trainer.gpu.runtimeClassName", "NVIDIA", "runtimeClassName"),
    ("trainer.gpu.tolerations", [{"operator": "Exists"}], "tolerations"),
    ("trainer.gpu.runtimeClassName", "a..b", "runtimeClassName"),
    ("trainer.gpu.tolerations", [{"key": "foo bar"}], "key"),
    ("trainer.gpu.tolerations", [{"key": "Example.com/gpu"}], "key"),
    ("trainer.gpu.tolerations", [{"key": "gpu", "value": "a b"}], "value"),
    ("trainer.ephemeralStorage", "9" * 24 + "G", "ephemeralStorage"),
    ("trainer.gpu.tolerations", [{"key": "gpu", "operator": "Exists", "value": "yes"}], "tolerations"),
    ("trainer.gpu.tolerations", [{"key": "gpu", "effect": "Never"}], "effect"),
    ("securityContext.fixedUser", "no", "fixedUser"),
    ("affinity", {"nodeAfinity": {}}, "nodeAfinity"),
    ("affinity", {"podAntiAffinity": {REQUIRED: [{"labelSelector": {}}]}}, "topologyKey"),
    ("affinity", {"podAffinity": {REQUIRED: [{"topologyKey": "zone"}]}}, "labelSelector"),
    ("monitoring.serviceMonitor.interval", "often", "interval"),
    ("monitoring.prometheusRule.runbookUrl", "docs/runbooks.md", "runbookUrl"),
    ("admissionPolicy.sources.models", ["huggingface.co/owner"], "models"),
    ("admissionPolicy.sources.models", ["hf://it's/"], "models"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG, ids=[f"{p}={v}" for p, v, _ in WRONG])
def test_wrong_values_are_refused_and_named(chart: Chart, path: str, value: Any, named: str) -> None:
    said = refusal(chart, changed(tuple(path.split(".")), value))
    assert "values don't meet the specifications of the schema" in said
    assert named in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tls": {"source": "CertManager"}}, "issuerName"),
        ({"progress": {"port": 8080}}, "health.port, metrics.port, progress.port: give each a port of its own"),
        ({"metrics": {"port": 8443}}, "health.port, metrics.port, progress.port: give each a port of its own"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name is the chart's own label"),
        (
            {"monitoring": {"serviceMonitor": {"enabled": True, "labels": {"helm.sh/chart": "x"}}}},
            "monitoring.serviceMonitor.labels: helm.sh/chart is the chart's own label",
        ),
        (
            {"monitoring": {"prometheusRule": {"enabled": True, "labels": {"app.kubernetes.io/name": "x"}}}},
            "monitoring.prometheusRule.labels: app.kubernetes.io/name is the chart's own label",
        ),
        (
            {"monitoring": {"dashboards": {"enabled": True, "labels": {"app.kubernetes.io/name": "x"}}}},
            "monitoring.dashboards.labels: app.kubernetes.io/name is the chart's own label",
        ),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name: name the ServiceAccount"),
        ({"admissionPolicy": {"sources": {"enabled": True}}}, "list models, data or outputs"),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_the_reason(
    chart: Chart, values: dict[str, Any], said: str
) -> None:
    assert said in refusal(chart, values)


NULLED = {"resources.requests", "resources.limits", "monitoring.dashboards.labels"}
"""Without them a list is empty."""
NEEDED = [
    path
    for path in paths(VALUES)
    if value_at(path) not in ("", {}, []) and not any(".".join(path).startswith(each) for each in NULLED)
]


@pytest.mark.parametrize("path", NEEDED, ids=".".join)
def test_null_for_what_is_needed_is_refused_by_name(chart: Chart, path: tuple[str, ...]) -> None:
    """It takes the default away, and a template would write `<nil>`."""
    assert f"missing property '{path[-1]}'" in refusal(chart, changed(path, None))


MAY_BE_EMPTY = [path for path in paths(VALUES) if path not in NEEDED]


@pytest.mark.parametrize("path", MAY_BE_EMPTY, ids=".".join)
def test_null_for_what_may_be_empty_is_as_if_empty(chart: Chart, path: tuple[str, ...]) -> None:
    assert not {"<nil>", "<no value>"} & set(json.dumps(chart.render(changed(path, None))).split('"'))


@pytest.mark.parametrize(
    ("name", "path"),
    [(name, path) for name, values in VALUE_SETS.items() for path in paths(values) if path in MAY_BE_EMPTY],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_null_for_what_may_be_empty_is_so_where_it_is_used_too(chart: Chart, name: str, path: tuple[str, ...]) -> None:
    values = copy.deepcopy(VALUE_SETS[name])
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = None
    said = rendered_or_refused(chart, values)
    assert "nil pointer" not in said
    assert not {"<nil>", "<no value>"} & set(said.split('"'))


def test_the_sets_of_the_other_tests_give_every_value() -> None:
    given = {path for values in VALUE_SETS.values() for path in paths(values)}
    assert set(paths(VALUES)) - given <= {LABELS, (*LABELS, "grafana_dashboard")}


def test_lint_finds_nothing(chart: Chart) -> None:
    assert "0 chart(s) failed" in chart.run("lint", "--strict", str(FOLDER))


def test_the_readme_is_the_generated_one() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "chart_readme.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout == (FOLDER / "README.md").read_text(), "run `make generate`"
    assert all(f"`{'.'.join(path)}`" in done.stdout for path in paths(VALUES) if not value_at(path))
