"""Directories are whole or absent; a disk that is really full costs nothing that was good."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, Termination
from finetune_trainer import storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.export import export
from finetune_trainer.progress import TERMINATION_LIMIT_BYTES, ProgressLog, write_termination
from trainer.runs import checkpoint_directory, checkpoints, complete, end_state, finish, leftovers, make_loop, output
from trainer.tiny import FULL, LORA, STRATEGIES, make_run

Disk = Callable[[int], Path]
KIB = 1024


def put(**files: str) -> Callable[[Path], None]:
    def fill(directory: Path) -> None:
        for name, text in files.items():
            (directory / name).write_text(text)

    return fill


def test_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    storage.write_directory(target, put(a="1", b="22"))
    storage.check_directory(target)
    assert json.loads((target / storage.MANIFEST).read_text())["files"]["b"]["bytes"] == 2
    assert storage.foreign_files(target) == []
    assert storage.digest(target).startswith("sha256:")


@pytest.mark.parametrize("existing", [False, True])
def test_failure_leaves_what_was_there(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "target"
    if existing:
        storage.write_directory(target, put(a="old"))

    def fail(directory: Path) -> None:
        (directory / "a").write_text("new")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        storage.write_directory(target, fail)
    assert target.exists() == existing
    if existing:
        storage.check_directory(target)
        assert (target / "a").read_text() == "old"
    assert not leftovers(tmp_path)


def test_failure_of_the_last_rename_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    storage.write_directory(target, put(a="old"))
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if self.name.startswith(".incomplete-"):
            raise OSError(errno.EIO, "input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="input/output"):
        storage.write_directory(target, put(a="new"))
    assert (target / "a").read_text() == "old"
    assert not leftovers(tmp_path)


def test_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    storage.write_directory(target, put(a="old", b="only in the old one"))
    storage.write_directory(target, put(a="new"))
    storage.check_directory(target)
    assert sorted(path.name for path in target.iterdir()) == ["a", storage.MANIFEST]
    assert not leftovers(tmp_path)


def test_weights_can_be_read_by_whoever_may_read_the_other_files(tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        save_file({"weight": torch.ones(1)}, directory / "model.safetensors")
        (directory / "config.json").write_text("{}")

    storage.write_directory(tmp_path / "target", fill)
    weights, config = (tmp_path / "target" / name for name in ("model.safetensors", "config.json"))
    assert weights.stat().st_mode == config.stat().st_mode


def test_tidy_looks_at_its_own_name_only(tmp_path: Path) -> None:
    for name in ("[a-z]", "b", "bb"):
        (tmp_path / f".incomplete-{name}").mkdir()
    (tmp_path / ".replaced-b").write_text("aside")
    storage.tidy(tmp_path, "b")
    assert {path.name for path in tmp_path.iterdir()} == {".incomplete-[a-z]", ".incomplete-bb", "b"}
    storage.tidy(tmp_path, "[a-z]")
    assert {path.name for path in tmp_path.iterdir()} == {".incomplete-bb", "b"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.STORAGE_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.STORAGE_FULL),
        (Exception("I/O error: No space left on device (os error 28)"), ExitCode.STORAGE_FULL),
        (Exception("Disk quota exceeded (os error 122)"), ExitCode.STORAGE_FULL),
        (PermissionError(errno.EACCES, "Permission denied"), ExitCode.OUTPUT_REFUSED),
        (OSError(errno.EROFS, "Read-only file system"), ExitCode.OUTPUT_REFUSED),
        (Exception("Permission denied (os error 13)"), ExitCode.OUTPUT_REFUSED),
    ],
)
def test_errors_of_the_disk(error: Exception, code: ExitCode) -> None:
    with pytest.raises(TrainerError) as caught, storage.storage_errors(Path("place")):
        raise error
    assert caught.value.code == code
    assert caught.value.message.startswith("place: ")


def test_other_errors_stay_what_they_are() -> None:
    for error in (OSError(errno.EIO, "input/output error"), ValueError("os error"), TrainerError(ExitCode.HANG, "x")):
        with pytest.raises(type(error)) as caught, storage.storage_errors(Path("place")):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("rust", ["safetensors", "tokenizers"])
def test_libraries_tell_of_a_full_disk_in_their_own_way(small_disk: Disk, rust: str, tiny_bert: Path) -> None:
    """Both are written in Rust, and neither raises an OSError."""
    disk = small_disk(64)

    def fill(directory: Path) -> None:
        if rust == "safetensors":
            save_file({"a": torch.zeros(100_000)}, directory / "a.safetensors")
        else:
            from tokenizers import Tokenizer

            (directory / "ballast").write_bytes(bytes(58 * KIB))
            Tokenizer.from_file(str(tiny_bert / "tokenizer.json")).save(str(directory / "tokenizer.json"))

    with pytest.raises(TrainerError) as caught:
        storage.write_directory(disk / "target", fill)
    assert caught.value.code == ExitCode.STORAGE_FULL
    assert list(disk.iterdir()) == []


def fill_up(disk: Path, free: int) -> Path:
    """Leave about so many bytes free."""
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    ballast.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - free)))
    return ballast


def on_disk(run: Run, disk: Path) -> Run:
    return run.model_copy(update={"work_dir": str(disk / "work")})


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.parametrize("name", ["full", "lora"])
def test_full_disk_while_training(small_disk: Disk, tmp_path: Path, tiny_bert: Path, name: str) -> None:
    """Checkpoints and best weights, at every amount of free space that lets the first one through."""
    fields: dict[str, Any] = {
        "training": {"epochs": 2, "learningRate": "1e-2"},
        "evaluation": {"everySteps": 3, "metric": "loss", "earlyStopping": {"patience": 9}},
        "checkpoint": {"everySteps": 2, "keep": 2},
    }
    undisturbed = make_run(tmp_path / "undisturbed", tiny_bert, STRATEGIES[name], **fields)
    complete(undisturbed)
    size = sum(path.stat().st_size for path in checkpoints(undisturbed)[0].iterdir())
    filled_at = set()
    for share in (1.2, 1.7, 2.2, 2.7, 3.2):
        disk = small_disk(2048)
        run = on_disk(make_run(tmp_path / f"{share}", tiny_bert, STRATEGIES[name], **fields), disk)
        ballast = fill_up(disk, int(share * size) + 40 * KIB)
        termination = finish(run)
        assert termination.exit_code == ExitCode.STORAGE_FULL, termination.message
        assert "no space left" in termination.message
        assert termination.progress is not None
        filled_at.add(termination.progress.step)
        assert not leftovers(disk)
        for path in checkpoint_directory(run).iterdir():
            storage.check_directory(path)
        ballast.unlink()
        complete(run)
        assert end_state(run) == end_state(undisturbed)
    assert len(filled_at) >= 2


@pytest.mark.parametrize("name", ["full", "houlsby", "lora"])
def test_full_disk_while_exporting(
    small_disk: Disk, tmp_path: Path, tiny_bert: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file is the one that does not fit: weights, tokenizer, configuration, card or manifest."""
    monkeypatch.setattr("finetune_trainer.export.reload.compare", lambda *_: 0.0)
    loop = make_loop(make_run(tmp_path / "run", tiny_bert, STRATEGIES[name]))
    disk = small_disk(1024)

    def write(target: Path) -> str:
        return export(target, loop.tuning, loop.task, lambda _: "card" * 2000)

    write(tmp_path / "whole")
    needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in (tmp_path / "whole").iterdir())
    for free in range(0, needed, max(4096, needed // 24)):
        ballast = fill_up(disk, free)
        with pytest.raises(TrainerError) as caught:
            write(disk / "out")
        assert caught.value.code == ExitCode.STORAGE_FULL
        assert [path.name for path in disk.iterdir()] == ["ballast"]
        ballast.unlink()
    write(disk / "out")
    storage.check_directory(disk / "out")


@pytest.mark.usefixtures("unchecked_export")
def test_full_disk_at_the_output_keeps_the_checkpoint_and_the_earlier_output(
    small_disk: Disk, tmp_path: Path, tiny_bert: Path
) -> None:
    disk = small_disk(1024)
    run = make_run(tmp_path, tiny_bert, FULL)
    spec = run.spec.model_copy(update={"output": run.spec.output.model_copy(update={"uri": f"file://{disk}/out"})})
    run = run.model_copy(update={"spec": spec})
    complete(run)
    weights = (disk / "out" / "model.safetensors").read_bytes()
    card = disk / "out" / "README.md"
    ballast = fill_up(disk, 8 * KIB)
    inode = card.stat().st_ino
    termination = finish(run)
    assert termination.exit_code == ExitCode.STORAGE_FULL
    assert str(disk / "out") in termination.message
    storage.check_directory(disk / "out")
    assert card.stat().st_ino == inode
    storage.check_directory(checkpoints(run)[0])
    ballast.unlink()
    complete(run)
    assert card.stat().st_ino != inode
    assert (output(run) / "model.safetensors").read_bytes() == weights


@pytest.mark.usefixtures("unchecked_export")
def test_progress_that_cannot_be_written_fails_nothing(
    tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, tiny_bert, LORA)
    work_dir = Path(run.work_dir)
    work_dir.mkdir()
    (work_dir / "progress.jsonl").symlink_to("/dev/full")
    termination = complete(run)
    assert termination.progress is not None
    assert termination.progress.percent == 100
    warnings = [record for record in caplog.records if "progress is not recorded" in record.message]
    assert len(warnings) == 1  # said once, not at every step


def test_progress_after_a_full_disk(small_disk: Disk) -> None:
    """A line cut short by the full disk spoils no other line."""
    disk = small_disk(64)
    ballast = fill_up(disk, 8 * KIB)
    log = ProgressLog(disk / "progress.jsonl")
    for number in range(200):
        log.note(f"before {number} " + "x" * 100)
    ballast.unlink()
    log.note("after")
    lines = (disk / "progress.jsonl").read_text().splitlines()
    valid = []
    for line in lines:
        try:
            valid.append(json.loads(line)["text"])
        except ValueError:
            continue
    assert len(valid) >= len(lines) - 1
    assert valid[0].startswith("before 0")
    assert valid[-1] == "after"


def test_progress_after_a_kill_within_a_line(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"event": "note", "text": "whole"}\n{"event": "no')
    ProgressLog(path).note("next")
    last = json.loads(path.read_text().splitlines()[-1])
    assert last["text"] == "next"


def last_word(**fields: Any) -> Termination:
    defaults = {"exit_code": ExitCode.INTERNAL_ERROR, "reason": "InternalError", "message": "m", "hint": "h"}
    return Termination.model_validate(defaults | fields)


RESULT = {
    "uri": "file://out", "digest": "sha256:" + "0" * 64, "metric": "accuracy", "before": {"accuracy": 0.5},
    "after": {"accuracy": 0.75}, "trainable_parameters": 1, "total_parameters": 2, "steps": 3, "duration_seconds": 4.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"message": "\x01" * 2048, "hint": '"' * 512},  # JSON writes six bytes for one, and two
        {"message": "😀" * 2048, "hint": "😀" * 512},
        {"message": "é" * 2048, "result": RESULT | {"uri": "file://" + "ä" * 900}},
        {"message": "m" * 2048, "result": RESULT | {"uri": "file://" + "😀" * 1000}},
        {"message": "m" * 2048, "result": RESULT | {"before": {"x" * 60 + str(i): 0.123456789 for i in range(32)}}},
    ],
)
def test_last_word_fits_and_is_valid(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tmp_path / "sub" / "termination.json"
    write_termination(path, last_word(**fields))
    content = path.read_bytes()
    assert len(content) <= TERMINATION_LIMIT_BYTES
    again = Termination.model_validate_json(content)
    assert (again.exit_code, again.reason) == (ExitCode.INTERNAL_ERROR, "InternalError")
    assert again.message


def test_last_word_keeps_the_result_longest(tmp_path: Path) -> None:
    path = tmp_path / "termination.json"
    write_termination(path, last_word(message="😀" * 2048, hint="😀" * 512, result=RESULT))
    result = Termination.model_validate_json(path.read_bytes()).result
    assert result is not None
    assert result.after == {"accuracy": 0.75}


def test_last_word_into_a_file_that_cannot_be_replaced(small_disk: Disk) -> None:
    """Kubernetes mounts a file: it can be written to, not renamed over; and its directory may be read-only."""
    disk = small_disk(64)
    mounted = disk / "termination-log"
    mounted.touch()
    subprocess.run(["mount", "--bind", str(mounted), str(mounted)], check=True)
    try:
        write_termination(mounted, last_word())
        assert Termination.model_validate_json(mounted.read_bytes()).message == "m"
        assert not leftovers(disk)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_last_word_to_a_device(tmp_path: Path) -> None:
    """A device is written to, not replaced, though root could; nor is a link."""
    link = tmp_path / "termination.json"
    link.symlink_to("/dev/null")
    write_termination(link, last_word())
    assert link.is_symlink()
    assert not leftovers(tmp_path)


def test_last_word_that_cannot_be_written_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    write_termination(full, last_word())
    (tmp_path / "file").touch()
    write_termination(tmp_path / "file" / "below", last_word())
    assert caplog.text.count("the termination message is not written") == 2
