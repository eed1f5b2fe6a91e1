"""Where `finetune run` puts a job on this machine, and when it goes on from an earlier run."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.manifest import parse_job
from finetune_api.v1alpha1 import FineTuneJob
from finetune_cli.local import LocalRefused, parse_volumes, place


def job(learning_rate: str = "1e-3", every_steps: int = 10) -> FineTuneJob:
    return parse_job(
        {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "router"},
            "spec": {
                "task": "TextClassification",
                "model": {"uri": "pvc://shared/minilm"},
                "data": {"train": {"uri": "file://train.jsonl"}},
                "strategy": {"full": {}},
                "training": {"learningRate": learning_rate},
                "checkpoint": {"everySteps": every_steps},
                "output": {"uri": "pvc://models/router"},
            },
        }
    )


def test_volumes_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_volumes(["tickets=data"]) == {"tickets": str(tmp_path / "data")}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("tickets", "CLAIM=DIRECTORY"),
        ("=data", "CLAIM=DIRECTORY"),
        ("tickets=", "CLAIM=DIRECTORY"),
        ("tickets=/absent", "/absent is no directory"),
    ],
)
def test_a_wrong_volume_is_named(option: str, message: str) -> None:
    with pytest.raises(LocalRefused, match=message):
        parse_volumes([option])


def test_a_job_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    placed = place(job(), tmp_path / "manifests" / "job.yaml", {"shared": "/models"}, tmp_path / "work", fresh=False)
    assert placed.directory == tmp_path / "work" / "default.router"
    assert placed.run_file.is_file()
    assert placed.run.local_path("pvc://shared/minilm") == Path("/models/minilm")


def test_a_relative_file_is_beside_the_manifest(tmp_path: Path) -> None:
    placed = place(job(), tmp_path / "manifests" / "job.yaml", {}, tmp_path / "work", fresh=False)
    assert placed.run.local_path("file://train.jsonl") == tmp_path / "manifests" / "train.jsonl"


def test_an_output_claim_that_is_not_given_is_a_folder_beside_the_checkpoints(tmp_path: Path) -> None:
    placed = place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False)
    assert placed.output == placed.directory / "volumes" / "models" / "router"


def test_an_output_claim_that_is_given_is_used(tmp_path: Path) -> None:
    placed = place(job(), tmp_path / "job.yaml", {"models": "/out"}, tmp_path, fresh=False)
    assert placed.output == Path("/out/router")


def test_the_same_job_goes_on_with_the_same_uid(tmp_path: Path) -> None:
    first = place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False)
    second = place(job(every_steps=20), tmp_path / "job.yaml", {}, tmp_path, fresh=False)
    assert second.run.uid == first.run.uid
    assert second.run.spec.checkpoint.every_steps == 20


def test_another_spec_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False)
    with pytest.raises(LocalRefused, match=r"another spec.*--fresh.*--work-dir"):
        place(job(learning_rate="2e-3"), tmp_path / "job.yaml", {}, tmp_path, fresh=False)


def test_fresh_forgets_the_earlier_run(tmp_path: Path) -> None:
    first = place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False)
    (first.directory / "checkpoints").mkdir()
    second = place(job(learning_rate="2e-3"), tmp_path / "job.yaml", {}, tmp_path, fresh=True)
    assert second.run.uid != first.run.uid
    assert not (second.directory / "checkpoints").exists()
