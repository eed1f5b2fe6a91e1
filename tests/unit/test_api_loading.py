"""The lines that load an output are whole Python for every spec; that they load it is in trainer/test_export.py."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Any

import pytest

from contract_cases import VALID_SPECS, valid_job
from finetune_api.loading import base_to_copy, lines_that_load, loader_of
from finetune_api.manifest import load_jobs
from finetune_api.v1alpha1.job import Task
from finetune_cli.kubectl.result import how_to_load

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"
Spec = dict[str, Any]


def specs() -> list[Spec]:
    """Those of the samples, and all strategies of the contract's cases with every task and from every place."""
    found = [job.spec.to_json() for path in sorted(SAMPLES.glob("*.yaml")) for job in load_jobs(path)]
    strategies = [valid_job(name)["spec"]["strategy"] for name in VALID_SPECS]
    for strategy, task, uri in itertools.product(strategies, Task, ("hf://owner/base", "s3://bucket/base")):
        found.append({"task": task.value, "strategy": strategy, "model": {"uri": uri}})
    return found


def names_missing(code: str, *given: str) -> set[str]:
    """The names that code uses and neither imports nor assigns."""
    known, missing = set(given), set[str]()
    for statement in ast.parse(code).body:
        used = [each for each in ast.walk(statement) if isinstance(each, ast.Name)]
        missing |= {each.id for each in used if isinstance(each.ctx, ast.Load)} - known
        known |= {each.id for each in used if isinstance(each.ctx, ast.Store)}
        if isinstance(statement, ast.ImportFrom):
            known |= {each.name for each in statement.names}
    return missing


def test_every_line_has_what_it_needs_and_nothing_is_imported_for_nothing() -> None:
    for spec in specs():
        code = lines_that_load(spec)
        given = {"directory", "base_directory"} if base_to_copy(spec) else {"directory"}
        assert names_missing(code, *given) == set(), spec
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                assert not [each.name for each in node.names if code.count(each.name) < 2], code


def test_the_plugin_says_these_lines_and_what_they_need() -> None:
    for spec in specs():
        text = how_to_load(spec, "file:///models/tuned")
        _, _, code = text.partition('\ndirectory = "/models/tuned"\n')
        code, _, _ = code.partition("\nIts README.md")
        assert code.endswith(lines_that_load(spec))
        assert names_missing(code, "directory") == set(), spec


@pytest.mark.parametrize(
    ("task", "strategy", "loader"),
    [
        ("TextClassification", {"full": {}}, "transformers"),
        ("TextClassification", {"distillation": {}}, "transformers"),
        ("TextClassification", {"adapter": {}}, "transformers-remote-code"),
        ("TokenClassification", {"adapter": {"type": "Bottleneck"}}, "transformers-remote-code"),
        ("TextGeneration", {"adapter": {"type": "LoRA"}}, "peft"),
        ("TextGeneration", {"adapter": {"type": "LoRA", "stackOn": []}}, "peft"),
        ("TextGeneration", {"adapter": {"type": "LoRA", "stackOn": [{"uri": "x"}]}}, "transformers-remote-code"),
        ("TextGeneration", {"adapter": {"type": "IA3", "merge": True}}, "transformers"),
        ("QuestionAnswering", {"promptTuning": {}}, "transformers-remote-code"),
        ("TextGeneration", {"promptTuning": {}}, "peft"),
    ],
)
def test_what_loads_an_output_follows_from_its_spec(task: str, strategy: Spec, loader: str) -> None:
    assert loader_of({"task": task, "strategy": strategy}) == loader


def test_a_base_in_an_object_store_is_loaded_from_a_copy() -> None:
    spec = {"task": "TextGeneration", "model": {"uri": "s3://models/base"}, "strategy": {"adapter": {"type": "LoRA"}}}
    text = how_to_load(spec, "s3://models/tuned")
    assert 'base_directory = "..."  # a copy of s3://models/base' in text
    assert "from_pretrained(\n    base_directory,\n" in text
    assert "base_model_name_or_path" not in text


def test_a_task_of_a_later_release_has_lines_too() -> None:
    assert "AutoModel.from_pretrained(directory)" in lines_that_load({"task": "Ranking", "strategy": {"full": {}}})
