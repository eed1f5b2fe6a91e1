"""What this release cannot run is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from contract_cases import changed, spec_fields, valid_job
from finetune_api.manifest import parse_job
from finetune_api.support import UNSUPPORTED, unsupported

COMPARING = {**valid_job("empty-objects")["spec"], "output": {"uri": "pvc://models/tuned"}}
# The first valid manifest that is changed, and the change that asks for the field.
REQUESTS: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "resources.nodes": ("empty-objects", (), {**COMPARING, "resources": {"nodes": 2}}),
    "resources.gpusPerNode": ("empty-objects", (), {**COMPARING, "resources": {"gpusPerNode": 2}}),
}


@pytest.mark.parametrize("field", REQUESTS)
def test_each_is_refused_by_its_name_alone(field: str) -> None:
    name, path, value = REQUESTS[field]
    [problem] = unsupported(parse_job(changed(valid_job(name), ("spec", *path), value)).spec)
    assert problem.field == f"spec.{field}"
    assert problem.hint


def test_every_entry_has_a_request_and_names_a_real_field() -> None:
    fields = [each.field for each in UNSUPPORTED]
    assert sorted(fields) == sorted(REQUESTS)
    assert {f"spec.{field}" for field in fields} <= set(spec_fields())


@pytest.mark.parametrize("name", ["minimal", "adapter-defaults", "lora", "distillation", "prompt-defaults", "auto"])
def test_what_can_be_run_passes(name: str) -> None:
    assert unsupported(parse_job(valid_job(name)).spec) == []


def test_every_other_field_of_a_full_job_passes() -> None:
    manifest = valid_job("everything-of-full")
    assert unsupported(parse_job(manifest).spec) == []
