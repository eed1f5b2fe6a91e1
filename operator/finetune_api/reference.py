"""Writes the reference of every field, docs/reference.md, from the same schema that the API server validates by."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.base import Contract, models_in
from finetune_api.crd import Schema, rendered, structural_schema
from finetune_api.v1alpha1 import API_VERSION, KIND, FineTuneJob, FineTuneJobSpec
from finetune_api.v1alpha1.metadata import ObjectMeta
from finetune_api.v1alpha1.status import FineTuneJobStatus
from finetune_api.values import (
    DECIMAL_PATTERN,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    EXTENDED_RESOURCE_PATTERN,
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    NO_PARENT,
    QUANTITY_PATTERN,
    URI_PATTERN,
    URI_SHAPES,
)

_TYPE_OF_PATTERN = {
    DECIMAL_PATTERN: "decimal",
    QUANTITY_PATTERN: "quantity",
    URI_PATTERN: "URI",
    DNS_LABEL_PATTERN: "DNS label",
    DNS_SUBDOMAIN_PATTERN: "DNS name",
    LABEL_KEY_PATTERN: "label key",
    LABEL_VALUE_PATTERN: "label value",
    EXTENDED_RESOURCE_PATTERN: "resource name",
}

_HEADER = f"""\
<!-- Generated from operator/finetune_api by `make generate`; do not edit. -->
# {KIND}, {API_VERSION}

Every field. `kubectl explain ftj.spec --recursive` shows the same on a cluster. A field that is not listed is an
error, and a field that is null counts as left out.

| type | how it is written |
|---|---|
| decimal | a finite number as a quoted string: `"0.1"`, `"2e-4"` |
| quantity | as in Kubernetes, more than 0: `2`, `"500m"`, `"16Gi"` |
| URI | `hf://`, `pvc://`, `s3://`, `file://` or `https://`, without spaces, `?` or `#`: {{shapes}} |
| DNS label, DNS name | names as in Kubernetes: lower-case letters, digits and `-`; a DNS name may also have dots |
| label key, label value, resource name | as in Kubernetes: `example.com/zone`; a resource name always has the `/` |
"""


def render() -> str:
    """The reference as Markdown."""
    shapes = "; ".join(f"`{scheme}` {message}" for scheme, (_, message) in URI_SHAPES.items())
    name = ObjectMeta.model_fields["name"].description
    parts = [
        _HEADER.format(shapes=f"{shapes}; it {NO_PARENT}"),
        f"## metadata\n\n`metadata.name` is required: {name}\n",
        "## spec\n",
        *_sections(FineTuneJobSpec, "spec"),
        "### Changes\n\nBesides what is fixed for good (above), by how far the job is:\n",
        "".join(f"- {_attributed(rendered(rule))}\n" for rule in FineTuneJob.rules),
        "## status\n\nWritten by the operator, never by people.\n",
        *_sections(FineTuneJobStatus, "status"),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _sections(root: type[Contract], path: str) -> list[str]:
    paths: dict[type[Contract], list[str]] = {}
    _collect(root, path, paths)
    return [_section(model, places) for model, places in paths.items()]


def _collect(model: type[Contract], path: str, paths: dict[type[Contract], list[str]]) -> None:
    """Note where each object stands, in the order of the manifest."""
    paths.setdefault(model, []).append(path)
    properties = structural_schema(model)["properties"]
    for field in model.model_fields.values():
        each = "[]" if properties[field.alias].get("type") == "array" else ""
        for nested in models_in(field.annotation):
            _collect(nested, f"{path}.{field.alias}{each}", paths)


def _section(model: type[Contract], paths: list[str]) -> str:
    schema = structural_schema(model)
    lines = [f"### {model.__name__}", "", f"{', '.join(f'`{path}`' for path in paths)}: {schema['description']}", ""]
    lines += ["| field | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for field in model.model_fields.values():
        name = str(field.alias)
        node = schema["properties"][name]
        nested = next(iter(models_in(field.annotation)), None)
        default = (
            "*required*" if name in schema.get("required", ()) else _code(node["default"]) if "default" in node else ""
        )
        cells = [f"`{name}`", _type(node, nested), default, _allowed(node), node["description"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    rules = [f"- {_attributed(rule)}" for rule in schema.get("x-kubernetes-validations", ())]
    return "\n".join([*lines, "", *rules, ""] if rules else [*lines, ""])


def _type(node: Schema, nested: type[Contract] | None) -> str:
    if "items" in node:
        return f"list of {_type(node['items'], nested)}"
    if "additionalProperties" in node:
        keys = "label key" if LABEL_KEY_PATTERN in node["x-kubernetes-validations"][0]["message"] else "string"
        return f"map of {keys} to {_type(node['additionalProperties'], None)}"
    if nested is not None:
        return f"[{nested.__name__}](#{nested.__name__.lower()})"
    if node.get("format") == "date-time":
        return "time"
    return _TYPE_OF_PATTERN.get(node.get("pattern", ""), str(node.get("type")))


def _allowed(node: Schema) -> str:
    """The bounds of a value, and of the values of a list or a map."""
    if "enum" in node:
        return ", ".join(_code(value) for value in node["enum"])
    named = node.get("pattern") in _TYPE_OF_PATTERN
    parts = [
        _range(node, "minimum", "maximum", ""),
        "" if named else _range(node, "minLength", "maxLength", "characters"),
        _range(node, "minItems", "maxItems", "items"),
        _range(node, "minProperties", "maxProperties", "entries"),
        "" if named or "pattern" not in node else _code(node["pattern"]),
    ]
    if node.get("pattern") == QUANTITY_PATTERN:
        parts = []
    if node.get("pattern") == DECIMAL_PATTERN:
        parts.append(node["x-kubernetes-validations"][0]["message"].removeprefix("must be ").removeprefix("a number "))
    inside = node.get("items") or node.get("additionalProperties") or {}
    if inside and inside.get("type") != "object" and (each := _allowed(inside)):
        parts.append(f"each {each}")
    return "; ".join(part for part in parts if part)


def _range(node: Schema, lowest: str, highest: str, unit: str) -> str:
    low, high = node.get(lowest), node.get(highest)
    if low is None and high is None:
        return ""
    text = f"at most {high:,}" if low is None else f"at least {low:,}" if high is None else f"{low:,} to {high:,}"
    return f"{text} {unit}".strip()


def _attributed(rule: Schema) -> str:
    field = rule.get("fieldPath", "").lstrip(".")
    return f"`{field}`: {rule['message']}" if field else str(rule["message"])


def _code(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return f"`{text}`"


if __name__ == "__main__":
    print(render(), end="")
