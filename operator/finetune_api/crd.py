"""
Generates the CustomResourceDefinition: a structural schema with CEL rules, from the contract's models.

pydantic's JSON schema is not structural (kubernetes.io/docs/tasks/extend-kubernetes/custom-resources): references
are inlined here, `anyOf [X, null]` collapses to X, titles and null defaults go, `const` becomes `enum`, and exclusive
bounds take the boolean form. Anything else that a structural schema forbids is an error, not a guess.
"""

from __future__ import annotations

import json
from typing import Any

import yaml
from pydantic import BaseModel

from finetune_api.base import Contract, Rule, models_in
from finetune_api.v1alpha1 import GROUP, KIND, PLURAL, VERSION, FineTuneJobSpec
from finetune_api.v1alpha1.status import FineTuneJobStatus

Schema = dict[str, Any]

SHORT_NAME = "ftj"
CATEGORY = "ml"

PRINTER_COLUMNS = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Strategy", "type": "string", "jsonPath": ".status.strategy"},
    {"name": "Progress", "type": "integer", "jsonPath": ".status.progress.percent", "description": "percent"},
    {"name": "Loss", "type": "string", "jsonPath": ".status.progress.loss"},
    {"name": "ETA", "type": "integer", "jsonPath": ".status.progress.etaSeconds", "description": "seconds"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Task", "type": "string", "jsonPath": ".spec.task", "priority": 1},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.uri", "priority": 1},
    {"name": "Output", "type": "string", "jsonPath": ".spec.output.uri", "priority": 1},
)

_KEPT = frozenset(
    {
        "type", "description", "enum", "default", "format", "pattern", "minLength", "maxLength", "minimum", "maximum",
        "minItems", "maxItems", "minProperties", "maxProperties", "required",
    }
)  # fmt: skip
_REWRITTEN = frozenset(
    {"title", "properties", "additionalProperties", "items", "const", "anyOf", "allOf", "$ref", "$defs",
     "exclusiveMinimum", "exclusiveMaximum", "propertyNames", "patternProperties"}
)  # fmt: skip


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition of FineTuneJob."""
    # The root rule guards the name because the names of pods and services are derived from it.
    root: Schema = {
        "type": "object",
        "description": "A fine-tuning run of a language model.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(FineTuneJobSpec),
            "status": structural_schema(FineTuneJobStatus),
        },
        "x-kubernetes-validations": [
            {
                "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && size(self.metadata.name) <= 50",
                "message": "metadata.name must be lower-case letters, digits and '-', start with a letter, "
                "and have at most 50 characters",
            }
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [dict(column) for column in PRINTER_COLUMNS],
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def structural_schema(model: type[Contract]) -> Schema:
    """The structural schema of a model, with the CEL rules of it and of every model inside it."""
    root = model.model_json_schema(by_alias=True, mode="validation")
    models = {nested.__name__: nested for nested in _models(model)}
    return _convert(root, root.get("$defs", {}), models, model)


def _models(model: type[BaseModel], seen: frozenset[type[BaseModel]] = frozenset()) -> set[type[Contract]]:
    """The model and every Contract reachable from its fields."""
    if model in seen:
        raise ValueError(f"{model.__name__} contains itself; a structural schema cannot")
    found: set[type[Contract]] = {model} if issubclass(model, Contract) else set()
    for field in model.model_fields.values():
        for part in models_in(field.annotation):
            found |= _models(part, seen | {model})
    return found


def _convert(
    node: Schema, defs: dict[str, Schema], models: dict[str, type[Contract]], model: type[Contract] | None = None
) -> Schema:
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _convert({**defs[name], **beside}, defs, models, models.get(name))
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a union of {len(options)} types is not structural: {node}")
        beside = {key: value for key, value in node.items() if key != "anyOf"}
        return _convert({**options[0], **beside}, defs, models)
    unknown = [key for key in node if key not in _KEPT | _REWRITTEN and not key.startswith("x-kubernetes-")]
    if unknown:
        raise ValueError(f"cannot express {unknown} in a structural schema: {node}")

    schema = {key: node[key] for key in node if key in _KEPT or key.startswith("x-kubernetes-")}
    if schema.get("default", ...) is None:
        del schema["default"]
    if "const" in node:
        schema["enum"] = [node["const"]]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            schema |= {bound: node[exclusive], exclusive: True}
    if "items" in node:
        schema["items"] = _convert(node["items"], defs, models)
    if "properties" in node:
        schema["properties"] = {key: _convert(value, defs, models) for key, value in node["properties"].items()}
        for field in model.model_fields.values() if model else ():
            # Without a default here the API server would not fill in the defaults inside an object left out.
            if field.default_factory is not None:
                schema["properties"][field.alias]["default"] = {}
    elif isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = _convert(node["additionalProperties"], defs, models)
    if "patternProperties" in node:  # a map whose keys have a pattern
        [(pattern, values)] = node["patternProperties"].items()
        schema["additionalProperties"] = _convert(values, defs, models)
        schema["x-kubernetes-validations"] = _key_rules(pattern, node["propertyNames"]["maxLength"])
    if model is not None and model.rules:
        schema["x-kubernetes-validations"] = [_rule(rule) for rule in model.rules]
    return schema


def _key_rules(pattern: str, max_length: int) -> list[Schema]:
    """Rules for a map's keys, which a structural schema cannot constrain."""
    return [
        {
            "rule": f"self.all(key, size(key) <= {max_length} && key.matches(r'{pattern}'))",
            "message": f"keys must match {pattern} and have at most {max_length} characters",
        }
    ]


def _rule(rule: Rule) -> Schema:
    rendered = {"rule": rule.cel, "message": rule.message}
    if rule.field:
        rendered["fieldPath"] = rule.field
    return rendered


def render() -> str:
    """The CRD as YAML, as it is committed under manifests/crds/."""
    header = "# Generated from operator/finetune_api by `make generate`; do not edit.\n"
    without_shared_nodes = json.loads(json.dumps(crd()))  # or YAML would write them as anchors and aliases
    return header + yaml.safe_dump(without_shared_nodes, sort_keys=False, width=120)


if __name__ == "__main__":
    print(render(), end="")
