"""Print the chart's README: its values, with the words and the defaults of values.yaml. `make generate` writes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parent.parent / "helm" / "finetune-operator"

HEAD = """\
# finetune-operator

Generated from `values.yaml` by `make generate`; do not edit.

```sh
helm install finetune-operator ./helm/finetune-operator --namespace finetune-system --create-namespace \\
  --set image.repository=registry.example.com/ml/finetune-operator \\
  --set trainer.image.repository=registry.example.com/ml/finetune-trainer
```

[Installing](../../docs/installing.md) has the images, upgrades, removal and quick starts;
[GitOps](../../docs/gitops.md) has Argo CD and Flux. A value that is not in this table is refused, and so is one of the
wrong kind.
"""


@dataclass(frozen=True)
class Value:
    """One value: its path, its default as JSON, and what is said of it."""

    path: tuple[str, ...]
    default: str
    text: str


def values(node: yaml.Node | None, lines: list[str], path: tuple[str, ...] = ()) -> Iterator[Value]:
    """The values below a node, in the order of the file; a map without an explanation is a section."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        inner = (*path, key.value)
        text = _comment_above(lines, key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and value.value and not text:
            yield from values(value, lines, inner)
        else:
            yield Value(inner, json.dumps(_plain(value)), text)


def readme() -> str:
    """The whole text."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    root = yaml.compose(text, yaml.SafeLoader)
    rows: list[str] = []
    section = None
    for value in values(root, text.splitlines()):
        if value.path[0] != section and len(value.path) > 1:
            rows.append(f"| **{value.path[0]}** | | |")
        section = value.path[0]
        rows.append(f"| `{'.'.join(value.path)}` | `{value.default}` | {value.text} |")
    table = ["| value | default | meaning |", "|---|---|---|", *rows]
    return HEAD + "\n## Values\n" + "\n".join(table) + "\n"


def _comment_above(lines: list[str], number: int) -> str:
    found: list[str] = []
    while number > 0 and lines[number - 1].strip().startswith("#"):
        number -= 1
        found.insert(0, lines[number].strip().removeprefix("#").strip())
    return " ".join(found)


def _plain(node: yaml.Node) -> object:
    plain: object = yaml.safe_load(yaml.serialize(node))
    return plain


if __name__ == "__main__":
    sys.stdout.write(readme())
