"""Generates the CustomResourceDefinition: a structural schema with CEL rules, from the contract's models.

pydantic's JSON schema is not structural (kubernetes.io/docs/tasks/extend-kubernetes/custom-resources): references
are inlined here, `anyOf [X, null]` collapses to X, titles and null defaults go, `const` becomes `enum`, and exclusive
bounds take the boolean form. Anything else that a structural schema forbids is an error, not a guess.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from finetune_api.base import Contract, Rule, models_in
from finetune_api.v1alpha1 import GROUP, KIND, PLURAL, VERSION, FineTuneJob, FineTuneJobSpec
from finetune_api.v1alpha1.metadata import ObjectMeta
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
    {"title", "properties", "additionalProperties", "items", "const", "anyOf", "$ref", "$defs",
     "exclusiveMinimum", "exclusiveMaximum", "propertyNames", "patternProperties"}
)  # fmt: skip


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition of FineTuneJob."""
    # Of metadata a structural schema may constrain the name: the names of pods and services are derived from it.
    name = _convert(ObjectMeta.model_json_schema()["properties"]["name"], {}, {})
    root: Schema = {
        "type": "object",
        "description": "A fine-tuning run of a language model.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": structural_schema(FineTuneJobSpec),
            "status": structural_schema(FineTuneJobStatus),
        },
        "x-kubernetes-validations": [rendered(rule) for rule in FineTuneJob.rules],
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


def _models(model: type[Contract], seen: frozenset[type[Contract]] = frozenset()) -> set[type[Contract]]:
    """The model and every model reachable from its fields."""
    if model in seen:
        raise ValueError(f"{model.__name__} contains itself; a structural schema cannot")
    found = {model}
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

    schema = _scalar(node)
    if "items" in node:
        # What the API server filled in there would differ from the manifest for ever: a list is applied as a whole.
        schema["items"] = _without_defaults(_convert(node["items"], defs, models))
        schema.setdefault("x-kubernetes-list-type", "atomic")
    if "properties" in node:
        if model is None:
            raise ValueError(f"an object whose model is not known (two of one name?): {node}")
        if node.get("additionalProperties") is not False:
            raise ValueError(f"{model.__name__} allows unknown fields, which a structural schema would prune")
        schema["properties"] = _properties(node["properties"], defs, models, model)
    elif schema.get("type") == "object":
        schema |= _map(node, defs, models)
    if model is not None and model.rules:
        schema["x-kubernetes-validations"] = [rendered(rule) for rule in model.rules]
    return schema


def _without_defaults(schema: Schema) -> Schema:
    """A schema whose defaults, and those below it, are the models' alone."""
    found = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in found:
        found["properties"] = {name: _without_defaults(part) for name, part in found["properties"].items()}
    for inner in ("items", "additionalProperties"):
        if inner in found:
            found[inner] = _without_defaults(found[inner])
    return found


def _scalar(node: Schema) -> Schema:
    """A node without what is inside it."""
    unknown = [key for key in node if key not in _KEPT | _REWRITTEN and not key.startswith("x-kubernetes-")]
    if unknown:
        raise ValueError(f"cannot express {unknown} in a structural schema: {node}")
    schema = {key: node[key] for key in node if key in _KEPT or key.startswith("x-kubernetes-")}
    if "type" not in schema and "x-kubernetes-int-or-string" not in schema:
        raise ValueError(f"a structural schema needs a type: {node}")
    if schema.get("default", ...) is None:
        del schema["default"]
    if "const" in node:
        schema["enum"] = [node["const"]]
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            schema |= {bound: node[exclusive], exclusive: True}
    return schema


def _properties(
    nodes: Schema, defs: dict[str, Schema], models: dict[str, type[Contract]], model: type[Contract]
) -> dict[str, Schema]:
    """The schemas of a model's fields, with the defaults as they stand in a manifest."""
    properties = {key: _convert(node, defs, models) for key, node in nodes.items()}
    defaults = model.model_construct().to_json()
    for field in model.model_fields.values():
        alias = str(field.alias)
        if field.default_factory is not None:
            # Without a default here the API server would not fill in the defaults inside an object left out.
            properties[alias]["default"] = {}
        elif alias in defaults:
            properties[alias]["default"] = defaults[alias]  # pydantic's own schema has decimals as numbers
    return properties


def _map(node: Schema, defs: dict[str, Schema], models: dict[str, type[Contract]]) -> Schema:
    """What makes an object a map. Its keys, which a structural schema cannot constrain, get a rule."""
    keys = node.get("propertyNames", {})
    if "patternProperties" in node:
        [(pattern, values)] = node["patternProperties"].items()
        keys = {**keys, "pattern": pattern}
    else:
        values = node.get("additionalProperties")
    if not isinstance(values, dict) or not values:
        raise ValueError(f"a map needs a type of its values: {node}")
    schema: Schema = {"additionalProperties": _convert(values, defs, models)}
    limits = {
        "minLength": ("size(key) >= {}", "not be shorter than {}"),
        "maxLength": ("size(key) <= {}", "not be longer than {}"),
        "pattern": ("key.matches(r'{}')", "match {}"),
    }
    given = [(*limits[name], keys[name]) for name in limits if name in keys]
    if given:
        condition = " && ".join(cel.format(limit) for cel, _, limit in given)
        message = "keys must " + ", ".join(words.format(limit) for _, words, limit in given)
        schema["x-kubernetes-validations"] = [{"rule": f"self.all(key, {condition})", "message": message}]
    return schema


def rendered(rule: Rule) -> Schema:
    """A rule as the API server evaluates it."""
    schema = {"rule": rule.cel, "message": rule.message}
    if rule.field:
        schema["fieldPath"] = rule.field
    return schema


def render() -> str:
    """The CRD as YAML, as it is committed under manifests/crds/."""
    header = "# Generated from operator/finetune_api by `make generate`; do not edit.\n"
    without_shared_nodes = json.loads(json.dumps(crd()))  # or YAML would write them as anchors and aliases
    return header + yaml.safe_dump(without_shared_nodes, sort_keys=False, width=120)


if __name__ == "__main__":
    print(render(), end="")
