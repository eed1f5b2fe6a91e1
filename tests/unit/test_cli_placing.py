"""All jobs of a call are placed, or none: their volumes, outputs and directories are judged first."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.documents import write_document
from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import ManifestInvalid
from finetune_cli.local import LocalRefused
from finetune_cli.placing import place_all
from finetune_trainer.hold import only_trainer_in


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is called."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest(name: str, model: str = "file://base", output: str | None = None) -> Path:
    """A job's manifest; its output is its own where none is given."""
    path = Path(f"{name}.yaml")
    path.write_text(
        write_document(
            {
                "apiVersion": "finetune-operator.io/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": name},
                "spec": {
                    "task": "TextClassification",
                    "model": {"uri": model},
                    "data": {"train": {"uri": "file://train.jsonl"}},
                    "strategy": {"full": {}},
                    "output": {"uri": output or f"pvc://models/{name}"},
                },
            }
        )
    )
    return path


def test_a_claim_that_is_only_written_to_is_made(folder: Path) -> None:
    place_all([manifest("one")], {"models": Path("build/models")}, Path("work"), fresh=False)
    assert (folder / "build/models").is_dir()


def test_a_claim_that_an_earlier_job_writes_to_may_be_read(folder: Path) -> None:
    jobs = [manifest("teacher"), manifest("student", model="pvc://models/teacher")]
    place_all(jobs, {"models": Path("models")}, Path("work"), fresh=False)
    assert (folder / "models").is_dir()


@pytest.mark.parametrize("names", [("student",), ("student", "teacher")])
def test_a_claim_that_is_read_has_to_be_there(folder: Path, names: tuple[str, ...]) -> None:
    models = {"student": "pvc://models/base", "teacher": "file://base"}
    jobs = [manifest(name, model=models[name]) for name in names]
    with pytest.raises(LocalRefused) as refused:
        place_all(jobs, {"models": Path("typo")}, Path("work"), fresh=False)
    assert str(refused.value) == (
        "--volume models=typo: typo is no directory, and spec.model of student is pvc://models/base"
    )
    assert {path.name for path in folder.iterdir()} == {f"{name}.yaml" for name in names}


def test_a_claim_that_no_job_names_has_to_be_there() -> None:
    with pytest.raises(LocalRefused, match=r"^--volume modles=out: out is no directory$"):
        place_all([manifest("one")], {"modles": Path("out")}, Path("work"), fresh=False)


def test_a_file_is_no_volume() -> None:
    Path("out").touch()
    with pytest.raises(LocalRefused, match=r"^--volume models=out: out is no directory$"):
        place_all([manifest("one")], {"models": Path("out")}, Path("work"), fresh=False)


@pytest.mark.parametrize("output", ["pvc://models/./one/", "s3://bucket/one"])
def test_two_jobs_with_one_output_are_refused(folder: Path, output: str) -> None:
    first, volumes = f"{output}/", {}
    if output.startswith("pvc"):
        first, volumes = "pvc://models/one", {"models": Path("models")}
    jobs = [manifest("one", output=first), manifest("two", output=output)]
    with pytest.raises(ManifestInvalid, match=r"the jobs default/one and default/two write the same output, "):
        place_all(jobs, volumes, Path("work"), fresh=False)
    assert {path.name for path in folder.iterdir()} == {"one.yaml", "two.yaml"}


def test_claims_that_are_not_given_are_no_shared_output() -> None:
    jobs = [manifest("one", output="pvc://models/tuned"), manifest("two", output="pvc://models/tuned")]
    assert len(place_all(jobs, {}, Path("work"), fresh=False)) == 2


def test_a_job_is_given_once() -> None:
    with pytest.raises(ManifestInvalid, match=r"the job default/one is given more than once"):
        place_all([manifest("one"), manifest("one")], {}, Path("work"), fresh=False)


def test_a_fresh_start_is_refused_while_a_trainer_is_at_work(folder: Path) -> None:
    jobs = [manifest("one"), manifest("two")]
    place_all(jobs, {}, Path("work"), fresh=False)
    records = [folder / "work/default.one/termination.json", folder / "work/default.two/termination.json"]
    for record in records:
        record.touch()
    with only_trainer_in(folder / "work/default.two"), pytest.raises(LocalRefused) as refused:
        place_all(jobs, {}, Path("work"), fresh=True)
    assert refused.value.code == ExitCode.WORK_DIRECTORY_BUSY
    assert all(record.exists() for record in records)
    place_all(jobs, {}, Path("work"), fresh=True)
    assert not any(record.exists() for record in records)
