"""A benchmark's file of results: what is there is kept or made again, and each run says what it was made on."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainer.tiny import make_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]
OLD_MACHINE = {"cpu": "an abacus", "torch": "0.1"}


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with a folder of results of its own."""
    spec = importlib.util.spec_from_file_location("harness", ROOT / "benchmarks" / "harness.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "harness", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    return module


def results(harness: ModuleType) -> Any:
    return json.loads((harness.RESULTS / "own.json").read_text())


def runs(harness: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The runs of a benchmark that was started with these arguments."""
    monkeypatch.setattr(sys, "argv", ["benchmarks/own.py", *arguments])
    found = harness.Runs("own")
    found.parse(found.parser("What it is."))
    return found


@pytest.mark.slow
def test_again(harness: ModuleType, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("train", "evaluation")):
        write_rows(tmp_path / f"{name}.jsonl", make_rows(16, seed=seed))
    shutil.copytree(tiny_bert, tmp_path / "model")
    spec = {
        "task": "TextClassification",
        "model": {"uri": "pvc://examples/model"},
        "data": {name: {"uri": f"pvc://examples/{name}.jsonl"} for name in ("train", "evaluation")},
        "strategy": {"full": {}},
        "training": {"maxSteps": 1},
    }
    old = {"machine": OLD_MACHINE, "runs": {name: {"job": spec, "result": name} for name in ("full/1", "full/2")}}
    harness.write_results("own", old)
    runs(harness, monkeypatch, "--seeds", "1").job("full/1", spec)
    assert results(harness) == old
    runs(harness, monkeypatch, "--again").job("full/1", spec)
    left = results(harness)
    assert left["machine"] == OLD_MACHINE, "that of the run that was not made again"
    assert left["runs"]["full/2"] == old["runs"]["full/2"]  # type: ignore[index]
    made = left["runs"]["full/1"]
    assert made["result"]["steps"] == 1
    assert made["machine"]["command"].endswith("python benchmarks/own.py --again")
    assert made["machine"]["torch"] > OLD_MACHINE["torch"]


def test_each_run_has_its_machine(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(harness, monkeypatch).put("a/1", {"value": 1})
    runs(harness, monkeypatch, "--seeds", "2").put("a/2", {"value": 2})
    left = results(harness)
    assert list(left) == ["runs"]
    commands = [run["machine"]["command"].rpartition("/")[2] for run in left["runs"].values()]
    assert commands == ["own.py", "own.py --seeds 2"]
    assert [run["value"] for run in left["runs"].values()] == [1, 2]


def test_a_run_is_made_unless_it_may_stay(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not runs(harness, monkeypatch).is_made("a/1")
    runs(harness, monkeypatch).put("a/1", {"job": {"task": "x"}})
    assert runs(harness, monkeypatch).is_made("a/1")
    assert runs(harness, monkeypatch).is_made("a/1", job={"task": "x"})
    assert not runs(harness, monkeypatch).is_made("a/1", job={"task": "y"})
    assert not runs(harness, monkeypatch, "--again").is_made("a/1")
