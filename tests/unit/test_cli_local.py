"""Where a job is on this machine, and when it goes on from an earlier run."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.manifest import parse_job
from finetune_api.v1alpha1 import FineTuneJob
from finetune_cli.local import LocalRefused, Placed, forget, place


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


def ready(placed: Placed) -> Placed:
    """As the job's trainer finds it."""
    placed.directory.mkdir(parents=True, exist_ok=True)
    placed.run_file.write_text(placed.run.model_dump_json(by_alias=True, exclude_none=True))
    return placed


def test_a_job_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    volumes = {"shared": tmp_path / "models"}
    placed = place(job(), tmp_path / "manifests" / "job.yaml", volumes, tmp_path / "work", fresh=False)
    assert placed.directory == tmp_path / "work" / "default.router"
    assert placed.run.local_path("pvc://shared/minilm") == tmp_path / "models/minilm"
    assert not placed.directory.exists()


def test_volumes_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    placed = place(job(), Path("job.yaml"), {"shared": Path("models")}, Path("work"), fresh=False)
    assert placed.run.local_path("pvc://shared/minilm") == tmp_path / "models/minilm"


def test_a_relative_file_is_beside_the_manifest(tmp_path: Path) -> None:
    placed = place(job(), tmp_path / "manifests" / "job.yaml", {}, tmp_path / "work", fresh=False)
    assert placed.run.local_path("file://train.jsonl") == tmp_path / "manifests" / "train.jsonl"


def test_an_output_claim_that_is_not_given_is_a_folder_beside_the_checkpoints(tmp_path: Path) -> None:
    placed = place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False)
    assert placed.output == placed.directory / "volumes" / "models" / "router"


def test_an_output_claim_that_is_given_is_used(tmp_path: Path) -> None:
    placed = place(job(), tmp_path / "job.yaml", {"models": Path("/out")}, tmp_path, fresh=False)
    assert placed.output == Path("/out/router")


def test_the_same_job_goes_on_with_the_same_uid(tmp_path: Path) -> None:
    first = ready(place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False))
    second = place(job(every_steps=20), tmp_path / "job.yaml", {}, tmp_path, fresh=False)
    assert second.run.uid == first.run.uid
    assert second.run.spec.checkpoint.every_steps == 20


def test_another_spec_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    ready(place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False))
    with pytest.raises(LocalRefused, match=r"another spec.*--fresh.*--work-dir"):
        place(job(learning_rate="2e-3"), tmp_path / "job.yaml", {}, tmp_path, fresh=False)


def test_a_fresh_one_goes_on_from_nothing(tmp_path: Path) -> None:
    first = ready(place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False))
    second = place(job(learning_rate="2e-3"), tmp_path / "job.yaml", {}, tmp_path, fresh=True)
    assert second.run.uid != first.run.uid


def test_what_is_no_run_is_no_earlier_one(tmp_path: Path) -> None:
    first = ready(place(job(), tmp_path / "job.yaml", {}, tmp_path, fresh=False))
    first.run_file.write_bytes(b"\xff")
    place(job(learning_rate="2e-3"), tmp_path / "job.yaml", {}, tmp_path, fresh=False)


def test_all_is_forgotten_but_the_model_and_the_lock(tmp_path: Path) -> None:
    for name in ("checkpoints", "volumes/models/router", "downloads"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("lock", "run.json", "termination.json", "volumes/models/router/config.json"):
        (tmp_path / name).touch()
    forget(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"lock", "volumes/models/router/config.json"}
    assert not (tmp_path / "checkpoints").exists()
