"""`finetune validate`, and what command lines are wrong, as a person sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.documents import read_documents, write_document
from finetune_cli.main import main, parse

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_sample_is_valid(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(sample)]) == 0
    assert "is valid" in capsys.readouterr().out


def test_problems_go_to_stderr_by_line_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text((SAMPLES / "sentiment-full.yaml").read_text().replace("epochs: 3", "epoch: 3"))
    assert main(["validate", str(path)]) == 10
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == f"{path}:17: spec.training.epoch: unknown field (did you mean epochs?)"


def test_all_files_are_checked_even_after_a_bad_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tmp_path / "absent.yaml"), str(SAMPLES / "sentiment-full.yaml")]) == 10
    captured = capsys.readouterr()
    assert "absent.yaml: cannot be read: No such file or directory" in captured.err
    assert "is valid" in captured.out


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("text", "code"), [("", 0), ("bogus: 1\n", 10)])
def test_the_exit_code_tells_even_if_nothing_can_be_written(
    tmp_path: Path, text: str, code: int, unbuffered: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text((SAMPLES / "sentiment-full.yaml").read_text() + text)
    command = [sys.executable, "-m", "finetune_cli.main", "validate", str(path)]
    reader, writer = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("w") as full, os.fdopen(writer, "w") as gone:
        for nowhere in (full, gone):
            done = subprocess.run(
                command, stdout=nowhere, stderr=nowhere, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, check=False
            )
            assert done.returncode == code


def test_a_number_of_any_length_is_refused_by_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    text = (SAMPLES / "sentiment-full.yaml").read_text()
    path.write_text(text.replace("epochs: 3", f"epochs: 3\n    seed: 0x{'f' * 5000}"))
    assert main(["validate", str(path)]) == 10
    assert 'spec.training.seed: "0xfffff' in capsys.readouterr().err


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metrics-port", "70000"], "argument --metrics-port: '70000' is no port; use 0 to 65535"),
        (["--metrics-port", "-1"], "'-1' is no port"),
        (["--metrics-port", "http"], "'http' is no port"),
        (["--volume", "tickets"], "argument --volume: 'tickets': write it as CLAIM=DIRECTORY"),
        (["--volume", "=data"], "'=data': write it as CLAIM=DIRECTORY"),
        (["--volume", "tickets="], "'tickets=': write it as CLAIM=DIRECTORY"),
        (["--volume", "tickets=~nobody-here/x"], "'~nobody-here/x': there is no such home directory"),
        (["--work-dir", "~nobody-here"], "argument --work-dir: '~nobody-here': there is no such home directory"),
        (["--volume", "a=x", "--volume", "a=y"], "argument --volume: the claim 'a' is given twice"),
    ],
)
def test_a_wrong_command_line_ends_with_2(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "job.yaml", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_home_directory_is_found_where_the_shell_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    options = parse(["run", "job.yaml", "--work-dir=~/runs", "--volume=models=~/models", "--volume=data=./~"])
    assert options.work_dir == Path("/home/somebody/runs")
    assert options.volume == [("models", Path("/home/somebody/models")), ("data", Path("~"))]


def test_a_list_as_kubectl_prints_it_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [(SAMPLES / f"sentiment-{name}.yaml").read_text() for name in ("full", "adapter")]
    jobs = [document.content for sample in samples for document in read_documents(sample)]
    for job in jobs:
        job["metadata"] |= {"managedFields": [{"fieldsV1": {"f:spec": {}}}], "resourceVersion": "7", "generation": 1}
        job["status"] = {"phase": "Running", "unknown": True}
    path = tmp_path / "jobs.yaml"
    path.write_text(write_document({"apiVersion": "v1", "kind": "List", "items": jobs, "metadata": {}}))
    assert main(["validate", str(path)]) == 0
    assert capsys.readouterr().out.count("is valid") == 2
