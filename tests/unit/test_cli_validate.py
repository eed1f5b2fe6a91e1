"""`finetune validate` as a person sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_cli.main import main

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


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
