"""The reference is not stale and names every field, value and rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contract_cases import spec_fields
from finetune_api import reference
from finetune_api.v1alpha1 import FineTuneJob

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference.md"


@pytest.fixture(scope="module")
def page() -> str:
    return reference.render()


def test_page_is_not_stale(page: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == page, "run `make generate`"


def test_every_object_and_every_field_is_there(page: str) -> None:
    for path, schema in spec_fields().items():
        if "properties" in schema:
            assert f"`{path}`" in page, path
        elif not path.endswith("[]"):
            rows = [line for line in page.splitlines() if line.startswith(f"| `{path.rsplit('.', 1)[-1]}` |")]
            assert any(schema["description"].replace("|", "\\|").replace("\n", " ") in row for row in rows), path


def test_every_value_default_and_rule_is_there(page: str) -> None:
    for path, schema in spec_fields().items():
        for value in schema.get("enum", ()):
            assert f"`{value}`" in page, path
        for rule in schema.get("x-kubernetes-validations", ()):
            assert rule["message"].removeprefix("must be a number ") in page or "keys must" in rule["message"], path
    assert "| `learningRate` | decimal |  | > 0 | Peak learning rate." in page
    assert "| `warmupRatio` | decimal | `0.06` | >= 0 and <= 1 |" in page
    assert "| `targetModules` | list of string |  | 1 to 32 items; each 1 to 128 characters |" in page
    assert "| `nodeSelector` | map of label key to label value | `{}` | at most 16 entries |" in page


def test_what_can_be_changed_when_is_listed(page: str) -> None:
    for rule in FineTuneJob.rules:
        assert f"- `{rule.field.lstrip('.')}`: {rule.message}" in page


def test_tables_are_whole(page: str) -> None:
    for line in page.splitlines():
        if line.startswith("| `"):
            assert len(re.split(r"(?<!\\)\|", line)) == 7, line


def test_links_lead_somewhere(page: str) -> None:
    headings = {line.removeprefix("### ").lower() for line in page.splitlines() if line.startswith("### ")}
    assert set(re.findall(r"\]\(#([a-z]+)\)", page)) <= headings
