"""What the committed CRD lets a user say: nothing without end, no namespace, no account, no shape of a pod."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Schema = dict[str, Any]

CRD = Path(__file__).resolve().parents[2] / "manifests" / "crds" / "finetunejobs.yaml"
OF_THE_POD = {
    "spec.pod.nodeSelector", "spec.pod.tolerations", "spec.pod.labels", "spec.pod.envFromSecrets",
    "spec.pod.priorityClassName",
}  # fmt: skip
OF_ITS_SIZE = {
    "spec.resources.nodes", "spec.resources.gpusPerNode", "spec.resources.gpuResourceName", "spec.resources.cpu",
    "spec.resources.memory", "spec.resources.sharedMemory", "spec.resources.ephemeralStorage",
}  # fmt: skip
BYTES_OF_A_CHARACTER = 4
LARGEST_SPEC = 256 * 1024
"""A pod's annotations hold no more, and the run is one of them."""


def root() -> Schema:
    [version] = yaml.load(CRD.read_text(encoding="utf-8"), yaml.CSafeLoader)["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(node: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every part of a schema; the values of a map are `{}`."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in node:
            yield from nodes(node[key], path + mark)


EVERYTHING = {
    path: node for part in ("spec", "status") for path, node in nodes(root()["properties"][part], part)
}  # fmt: skip


def largest(node: Schema) -> int:
    """Bytes of JSON that a value can have."""
    if "enum" in node:
        return max(len(f'"{value}"') for value in node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return int(node["maxLength"]) + 2
    match node["type"]:
        case "string":
            wide = "[^" in node.get("pattern", "[^")  # the other patterns name ASCII characters
            return int(node.get("maxLength", 40)) * (BYTES_OF_A_CHARACTER if wide else 1) + 2
        case "array":
            return int(node["maxItems"]) * (largest(node["items"]) + 1) + 2
        case "object" if "additionalProperties" in node:
            key = 320  # a label's; the rule that bounds it is CEL
            return int(node["maxProperties"]) * (key + 3 + largest(node["additionalProperties"])) + 2
        case "object":
            return sum(len(name) + 4 + largest(child) for name, child in node.get("properties", {}).items()) + 2
    return 20


@pytest.mark.security(24)
def test_the_largest_spec_fits_into_a_pods_annotations() -> None:
    assert largest(EVERYTHING["spec"]) < LARGEST_SPEC * 3 // 4


@pytest.mark.security(24)
def test_nothing_unknown_is_kept() -> None:
    assert "x-kubernetes-preserve-unknown-fields" not in CRD.read_text(encoding="utf-8")
    assert "x-kubernetes-embedded-resource" not in CRD.read_text(encoding="utf-8")


@pytest.mark.security(9)
def test_no_field_of_the_spec_names_a_namespace() -> None:
    assert [path for path in EVERYTHING if "namespace" in path.lower()] == []


@pytest.mark.security(5)
def test_no_field_of_the_spec_names_an_account() -> None:
    assert [path for path in EVERYTHING if "account" in path.lower()] == []


@pytest.mark.security(2, 11, 12)
def test_what_shapes_a_pod_is_this_list_and_no_more() -> None:
    below = {
        path
        for path in EVERYTHING
        if path.startswith(("spec.pod.", "spec.resources.")) and path.count(".") == 2 and path[-1] not in "]}"
    }
    assert below == OF_THE_POD | OF_ITS_SIZE
    assert set(EVERYTHING["spec.pod.tolerations[]"]["properties"]) == {"key", "operator", "value", "effect"}


@pytest.mark.security(10)
def test_a_variable_names_one_key_of_one_secret() -> None:
    assert set(EVERYTHING["spec.pod.envFromSecrets[]"]["required"]) == {"name", "secret", "key"}
    assert set(EVERYTHING["spec.pod.envFromSecrets[]"]["properties"]) == {"name", "secret", "key"}
    others = [path for path in EVERYTHING if "secret" in path.lower() or "configmap" in path.lower()]
    assert {path.partition("[]")[0] for path in others} == {"spec.pod.envFromSecrets"}
