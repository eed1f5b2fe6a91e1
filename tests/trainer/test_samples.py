"""Every sample runs as it stands, but shorter: on the first rows of its data, for a few steps."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.manifest import load_jobs
from finetune_api.run import Run
from trainer.conftest import ROOT, asset
from trainer.runs import complete, output
from trainer.tiny import write_rows
from trainer.tiny_lm import make_chats, make_lm

SAMPLES = ROOT / "manifests" / "samples"
NUM_ROWS = {"train": 400, "evaluation": 60}
NUM_STEPS = 3
LANGUAGE_MODEL = "models/smollm2-135m-instruct"
CHATS = "data/alpaca"


def run_of(sample: Path, directory: Path, examples: Path) -> Run:
    """The sample's job on volumes under a directory, shortened."""
    [job] = load_jobs(sample)
    spec: dict[str, Any] = job.spec.to_json()
    spec["training"] = {**spec.get("training", {}), "maxSteps": NUM_STEPS}
    spec["training"].pop("epochs", None)
    evaluation = spec.get("evaluation", {})
    evaluation.pop("everySteps", None)
    if "retention" in evaluation:
        evaluation["retention"]["maxDrop"] = "1"  # so few steps keep nothing for certain
    if "taskSteps" in (distillation := spec["strategy"].get("distillation", {})):
        distillation["taskSteps"] = 1
    spec.get("resources", {}).pop("nodes", None)  # one machine, and so one node: the result is the same
    volumes = {"examples": str(examples), "models": str(directory / "models")}
    content = {"name": job.metadata.name, "uid": f"sample-{job.metadata.name}", "spec": spec, "volumes": volumes}
    content |= {"workDir": str(directory / "work" / job.metadata.name), "manifestDir": str(sample.parent)}
    return Run.model_validate_json(json.dumps(content))


def samples_before(sample: Path) -> list[Path]:
    """The samples whose outputs a sample reads."""
    outputs = {f"pvc://models/{path.stem}": path for path in SAMPLES.glob("*.yaml")}
    [job] = load_jobs(sample)
    read = set(re.findall(r"pvc://models/[-\w]+", sample.read_text(encoding="utf-8"))) - {job.spec.output.uri}
    return [outputs[uri] for uri in sorted(read)]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example assets with the first rows of each file. In place of the language model, which takes minutes to
    fetch, stands a tiny one of as many layers.
    """
    directory = tmp_path_factory.mktemp("examples")
    source = asset("data")
    for path in source.rglob("*.jsonl"):
        copy = directory / "data" / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open(encoding="utf-8") as lines:
            copy.write_text("".join(itertools.islice(lines, NUM_ROWS[path.stem])), encoding="utf-8")
    (directory / "models").mkdir()
    shutil.copytree(asset("models/minilm"), directory / "models" / "minilm")  # a link out of a volume is refused
    make_lm(directory / LANGUAGE_MODEL, num_hidden_layers=24, max_position_embeddings=512)
    (directory / CHATS).mkdir(exist_ok=True)
    for name, seed in (("train", 1), ("evaluation", 2)):
        write_rows(directory / CHATS / f"{name}.jsonl", make_chats(60, seed))
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them run: a sample that reads another's output trains that first, and each is trained once."""
    return tmp_path_factory.mktemp("samples")


def trained(sample: Path, directory: Path, examples: Path) -> Run:
    run = run_of(sample, directory, examples)
    if not output(run).exists():
        for before in samples_before(sample):
            trained(before, directory, examples)
        result = complete(run).result
        assert result is not None
        assert result.steps == NUM_STEPS
    return run


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_sample_runs(sample: Path, directory: Path, examples: Path) -> None:
    assert (output(trained(sample, directory, examples)) / "README.md").exists()
