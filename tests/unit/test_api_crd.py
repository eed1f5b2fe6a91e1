"""The CRD is structural whatever the models, or the generator says what it cannot express."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from finetune_api import crd
from finetune_api.base import Contract, Rule, models_in
from finetune_api.crd import Schema, structural_schema
from finetune_api.v1alpha1 import FineTuneJob, FineTuneJobSpec
from finetune_api.values import OpenFraction, Quantity, Unique

CRD_FILE = Path(__file__).resolve().parents[2] / "manifests" / "crds" / "finetunejobs.yaml"


class Color(StrEnum):
    """A color."""

    RED = "Red"
    BLUE = "Blue"


class Leaf(Contract):
    """A leaf."""

    color: Color = Color.RED
    """Its color."""
    area: Annotated[int, Field(gt=0, lt=10)]
    """Its area."""

    rules: ClassVar[tuple[Rule, ...]] = (Rule("self.area > 1", "too small", lambda self: self.area > 1, ".area"),)


class Tree(Contract):
    """A tree."""

    kind: Literal["Tree"] = "Tree"
    """Always Tree."""
    leaf: Leaf | None = None
    """The leaf."""
    leaves: Annotated[tuple[Leaf, ...], Field(max_length=3)] = ()
    """All leaves."""
    fraction: OpenFraction = 0.25
    """A share."""
    planted: AwareDatetime | None = None
    """When."""
    soil: Annotated[dict[Annotated[str, Field(min_length=1, max_length=5, pattern="^[a-z]+$")], Quantity],
                    Field(max_length=2)] = Field(default_factory=dict)  # fmt: skip
    """What it stands in."""
    nests: Annotated[tuple[Annotated[str, Field(max_length=9)], ...], Field(max_length=3), Unique()] = ()
    """Who lives there."""


@pytest.fixture(scope="module")
def tree() -> Schema:
    return structural_schema(Tree)


def test_optional_model_is_inlined_without_null(tree: Schema) -> None:
    leaf = tree["properties"]["leaf"]
    assert leaf["type"] == "object"
    assert leaf["description"] == "The leaf."
    assert "default" not in leaf
    assert leaf["required"] == ["area"]
    assert leaf["x-kubernetes-validations"] == [{"rule": "self.area > 1", "message": "too small", "fieldPath": ".area"}]


def test_rules_are_found_inside_lists(tree: Schema) -> None:
    leaves = tree["properties"]["leaves"]
    assert leaves["items"]["x-kubernetes-validations"][0]["message"] == "too small"
    assert leaves["x-kubernetes-list-type"] == "atomic"
    assert leaves["default"] == []


def test_exclusive_bounds_take_the_boolean_form(tree: Schema) -> None:
    assert tree["properties"]["leaf"]["properties"]["area"] == {
        "type": "integer", "format": "int64", "minimum": 0, "exclusiveMinimum": True, "maximum": 10,
        "exclusiveMaximum": True, "description": "Its area.",
    }  # fmt: skip


def test_enumerations_and_constants_become_enums(tree: Schema) -> None:
    color = tree["properties"]["leaf"]["properties"]["color"]
    assert (color["type"], color["enum"], color["default"]) == ("string", ["Red", "Blue"], "Red")
    assert tree["properties"]["kind"]["enum"] == ["Tree"]


def test_the_schema_has_no_default_inside_a_list(tree: Schema) -> None:
    """A list is replaced as a whole: with a default filled in, each `kubectl apply` would change it anew."""
    assert "default" not in tree["properties"]["leaves"]["items"]["properties"]["color"]
    [version] = crd.crd()["spec"]["versions"]
    assert not list(defaults_in_lists(version["schema"]["openAPIV3Schema"]["properties"]["spec"]))


def defaults_in_lists(schema: Schema, path: str = "", inside: bool = False) -> Iterator[str]:
    if inside and "default" in schema:
        yield path
    for name, part in schema.get("properties", {}).items():
        yield from defaults_in_lists(part, f"{path}.{name}", inside)
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from defaults_in_lists(schema[name], f"{path}[]", True)


def test_defaults_stand_as_in_a_manifest(tree: Schema) -> None:
    assert tree["properties"]["fraction"]["default"] == "0.25"


def test_times_keep_their_format(tree: Schema) -> None:
    assert tree["properties"]["planted"] == {"type": "string", "format": "date-time", "description": "When."}


def test_keys_of_maps_get_a_rule(tree: Schema) -> None:
    soil = tree["properties"]["soil"]
    assert soil["additionalProperties"]["x-kubernetes-int-or-string"] is True
    assert soil["default"] == {}
    assert soil["maxProperties"] == 2
    assert soil["x-kubernetes-validations"] == [
        {
            "rule": "self.all(key, size(key) >= 1 && size(key) <= 5 && key.matches(r'^[a-z]+$'))",
            "message": "keys must not be shorter than 1, not be longer than 5, match ^[a-z]+$",
        }
    ]


def test_unique_lists_are_sets(tree: Schema) -> None:
    assert tree["properties"]["nests"]["x-kubernetes-list-type"] == "set"


class Node(Contract):
    """Contains itself."""

    children: tuple[Node, ...] = ()
    """More of them."""


class Outside(BaseModel):
    """Not of the contract, so its rules are not known."""

    x: int = 0


class Open(Contract):
    """Allows unknown fields, which the API server would prune."""

    model_config = ConfigDict(extra="allow")

    x: bool = False
    """X."""


def model_with(annotation: Any) -> type[Contract]:
    return create_model("Model", __base__=Contract, field=(annotation, ...))


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (int | str, "a union of 2 types"),
        (int | str | None, "a union of 2 types"),
        (Leaf | Tree, "a union of 2 types"),
        (Node, "contains itself"),
        (Outside, "model is not known"),
        (Open, "allows unknown fields"),
        (Any, "needs a type"),
        (dict[str, Any], "a map needs a type of its values"),
        (dict, "a map needs a type of its values"),
        (Literal["a", 1], "needs a type"),
        (tuple[int, str], "cannot express ['prefixItems']"),
        (set[str], "cannot express ['uniqueItems']"),
        (Annotated[int, Field(multiple_of=2)], "cannot express ['multipleOf']"),
    ],
)
def test_what_is_not_structural_is_an_error_and_no_guess(annotation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        structural_schema(model_with(annotation))


def test_two_models_of_one_name_are_an_error() -> None:
    """Pydantic gives them other names then, and their rules would be lost."""
    other = create_model("Leaf", __base__=Contract, x=(bool, False))
    with pytest.raises(ValueError, match="model is not known"):
        structural_schema(create_model("Two", __base__=Contract, a=(Leaf, ...), b=(other, ...)))


def test_models_are_found_through_every_annotation() -> None:
    assert models_in(Annotated[tuple[Leaf, ...] | None, Field(max_length=1)]) == [Leaf]
    assert models_in(dict[str, Tree]) == [Tree]
    assert models_in(datetime | None) == []


def test_committed_crd_is_not_stale() -> None:
    assert CRD_FILE.read_text(encoding="utf-8") == crd.render(), "run `make generate`"


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every schema in a schema."""
    yield path, value
    for name, child in value.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for inside in ("items", "additionalProperties"):
        if inside in value:
            yield from nodes(value[inside], f"{path}.{inside}")


@pytest.fixture(scope="module")
def committed() -> dict[str, Schema]:
    """Every schema of the committed CRD, but for the standard fields at its top."""
    [version] = yaml.safe_load(CRD_FILE.read_text(encoding="utf-8"))["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    return dict(nodes({**root, "properties": {name: root["properties"][name] for name in ("spec", "status")}}))


def test_crd_is_pure_yaml_without_anchors() -> None:
    text = crd.render()
    assert yaml.safe_load(text) == crd.crd()
    assert "&id" not in text


def test_no_part_of_the_crd_has_what_is_forbidden(committed: dict[str, Schema]) -> None:
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "title", "const", "nullable", "uniqueItems"}
    for path, schema in committed.items():
        assert not forbidden & set(schema), path
        assert schema.get("default", 0) is not None, path
        assert not ({"properties", "additionalProperties"} <= set(schema)), path
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path


@pytest.mark.security(24)
def test_every_part_of_the_crd_is_bounded(committed: dict[str, Schema]) -> None:
    """Without bounds the API server would refuse the rules for what they might cost."""
    for path, schema in committed.items():
        match schema.get("type", "string"):
            case "string":
                assert "maxLength" in schema or "enum" in schema or schema.get("format") == "date-time", path
            case "array":
                assert "maxItems" in schema, path
                assert "x-kubernetes-list-type" in schema, path
            case "object" if "additionalProperties" in schema:
                assert "maxProperties" in schema, path
            case "integer":
                assert "minimum" in schema, path
                assert schema["format"] == "int64", path


def test_every_part_of_the_crd_is_described(committed: dict[str, Schema]) -> None:
    for path, schema in committed.items():
        if not path.endswith((".items", ".additionalProperties")):
            assert schema.get("description", "").endswith("."), path


def test_field_paths_of_rules_exist(committed: dict[str, Schema]) -> None:
    for path, schema in committed.items():
        for rule in schema.get("x-kubernetes-validations", ()):
            assert path + rule.get("fieldPath", "") in committed


def test_every_rule_of_the_models_is_in_the_crd() -> None:
    messages = json.dumps(crd.crd())
    models: list[type[Contract]] = [FineTuneJob, FineTuneJobSpec, *reachable(FineTuneJobSpec)]
    for model in models:
        for rule in model.rules:
            assert json.dumps(rule.message) in messages
            assert (rule.holds is None) == ("oldSelf" in rule.cel), "only a transition rule has no Python form"


def reachable(model: type[Contract]) -> Iterator[type[Contract]]:
    """Every model inside a model."""
    for field in model.model_fields.values():
        for nested in models_in(field.annotation):
            yield nested
            yield from reachable(nested)


def test_printer_columns_exist_in_the_schema(committed: dict[str, Schema]) -> None:
    types = {path: schema.get("type") for path, schema in committed.items()}
    for column in crd.PRINTER_COLUMNS:
        path = str(column["jsonPath"])
        if not path.startswith(".metadata"):
            assert types[path] == column["type"], column
