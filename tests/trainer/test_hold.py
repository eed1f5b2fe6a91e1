"""Two trainers never write to one place: the later one ends before it trains, and says what to do."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from any_user import as_any_user, folder_of_any_user
from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.hold import only_trainer_in, only_writer_of
from finetune_trainer.progress import ProgressLog
from finetune_trainer.run import execute
from finetune_trainer.stop import StopFlag
from trainer.processes import run_trainer
from trainer.runs import complete, finish, notes
from trainer.tiny import FULL, make_run

FORK = multiprocessing.get_context("fork")


def test_of_two_jobs_with_one_output_the_second_ends_before_it_trains(tmp_path: Path, tiny_bert: Path) -> None:
    run = make_run(tmp_path, tiny_bert, FULL)
    output = Path(run.manifest_dir, "out")
    other = run.model_copy(update={"uid": "another-job", "work_dir": str(tmp_path / "other-work")})
    with only_writer_of(output), pytest.raises(TrainerError) as caught:
        execute(other, ProgressLog(tmp_path / "progress.jsonl"), StopFlag())
    assert caught.value.code == ExitCode.WORK_DIRECTORY_BUSY
    assert str(caught.value).startswith(f"another job is at work that writes the same output, {output}")
    assert not output.exists()
    assert run_trainer(run) == ExitCode.COMPLETE
    assert list(output.parent.glob(".in-use-*")) == []


def test_the_trainer_that_is_at_work_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1 1, which has ended long ago")
    with only_trainer_in(tmp_path), pytest.raises(TrainerError) as caught, only_trainer_in(tmp_path):
        pass
    assert caught.value.code == ExitCode.WORK_DIRECTORY_BUSY
    assert str(caught.value) == f"another trainer is at work in {tmp_path} (process {os.getpid()})"
    assert caught.value.hint == f"wait for it, or stop it: kill {os.getpid()}"


def test_a_process_of_another_pod_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    """Both have the same number, as first processes of their pods have."""
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()} 1")
        lock.flush()
        with pytest.raises(TrainerError) as caught, only_trainer_in(tmp_path):
            pass
    assert str(caught.value) == f"another trainer is at work in {tmp_path}"
    assert caught.value.hint == "wait for it, or stop it"


def test_a_link_and_the_directory_that_it_leads_to_are_one_output(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with only_writer_of(tmp_path / "real"), pytest.raises(TrainerError) as caught, only_writer_of(tmp_path / "link"):
        pass
    assert caught.value.code == ExitCode.WORK_DIRECTORY_BUSY


def test_what_a_killed_trainer_left_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / ".in-use-out").touch()
    with only_writer_of(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_left_by_an_earlier_release", [False, True])
def test_what_a_killed_trainer_of_another_user_left_holds_nobody_up(is_left_by_an_earlier_release: bool) -> None:
    with folder_of_any_user() as folder:
        lock = folder / ".in-use-out"
        if is_left_by_an_earlier_release:
            lock.touch(0o644)
        else:
            killed = FORK.Process(target=take_and_die, args=(folder / "out",))
            killed.start()
            killed.join()
        assert lock.stat().st_uid == 0
        assert writes(folder / "out") == "held True\n"
        assert list(folder.iterdir()) == []


def test_of_two_users_with_one_output_the_second_is_told_so() -> None:
    with folder_of_any_user() as folder, only_writer_of(folder / "out"):
        assert writes(folder / "out") == f"{ExitCode.WORK_DIRECTORY_BUSY.value}\n"
        (folder / ".in-use-out").chmod(0o644)
        assert writes(folder / "out") == f"{ExitCode.WORK_DIRECTORY_BUSY.value}\n"


def test_what_another_user_left_where_nobody_removes_it_is_held_all_the_same() -> None:
    with folder_of_any_user() as folder:
        os.chown(folder, 0, 0)
        folder.chmod(0o1777)
        (folder / ".in-use-out").touch(0o644)
        assert writes(folder / "out") == "held True\n"
        assert [path.name for path in folder.iterdir()] == [".in-use-out"]


def test_where_no_lock_can_be_made_the_user_is_told_so() -> None:
    with folder_of_any_user() as folder:
        folder.chmod(0o500)
        assert writes(folder / "out") == f"{ExitCode.OUTPUT_REFUSED.value}\n"


def writes(output: Path) -> str:
    """What another user is told that takes an output: whether it is held, or the exit code."""
    code = (
        "import sys; from pathlib import Path; from finetune_trainer.errors import TrainerError\n"
        "from finetune_trainer.hold import only_writer_of\n"
        "try:\n    with only_writer_of(Path(sys.argv[1])) as held: print('held', held)\n"
        "except TrainerError as error: print(error.code.value)"
    )
    command = as_any_user([sys.executable, "-c", code, str(output)])
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def take_and_die(output: Path) -> None:
    """As when memory runs out."""
    os.umask(0o022)
    with only_writer_of(output):
        os._exit(137)


@pytest.mark.parametrize("parent", ["", "made/later"])
def test_a_full_volume_of_the_output_holds_up_no_training(
    parent: str, small_disk: Callable[[int], Path], tmp_path: Path, tiny_bert: Path
) -> None:
    """By its end there may be space again."""
    disk = small_disk(64)
    subprocess.run(["mount", "-o", "remount,nr_inodes=8", str(disk)], check=True)
    assert not all(made(disk / f"file-{number}") for number in range(9))
    target = disk / parent / "out"
    run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2}, output={"uri": f"file://{target}"})
    end = finish(run)
    assert end.exit_code == ExitCode.STORAGE_FULL, end.message
    assert end.progress is not None
    assert end.progress.step == 2
    assert f"no lock can be had in {target.parent}: see that no other job writes there" in notes(run)


def made(path: Path) -> bool:
    try:
        path.touch()
    except OSError:
        return False
    return True


@pytest.mark.usefixtures("unchecked_export")
def test_an_output_that_is_a_link_to_what_is_not_there_yet_is_made_there(tmp_path: Path, tiny_bert: Path) -> None:
    run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2})
    Path(run.manifest_dir, "out").symlink_to(tmp_path / "else" / "where")
    complete(run)
    assert (tmp_path / "else" / "where" / "config.json").is_file()
    assert [path.name for path in (tmp_path / "else").iterdir()] == ["where"]


def test_of_an_output_in_another_the_later_job_is_refused_before_it_trains(tmp_path: Path, tiny_bert: Path) -> None:
    """The inner one would be replaced together with the outer one, which in turn is not written over files."""
    run = make_run(tmp_path, tiny_bert, FULL)
    outer = Path(run.manifest_dir, "out")
    output = run.spec.output.model_copy(update={"uri": "file://out/inner/deep"})
    inner_run = run.model_copy(update={"spec": run.spec.model_copy(update={"output": output}), "uid": "another-job"})
    inner_run = inner_run.model_copy(update={"work_dir": str(tmp_path / "other-work")})
    with only_writer_of(outer), pytest.raises(TrainerError) as caught:
        execute(inner_run, ProgressLog(tmp_path / "progress.jsonl"), StopFlag())
    assert caught.value.code == ExitCode.WORK_DIRECTORY_BUSY
    assert (
        str(caught.value) == f"another job is at work that writes {outer}, which the output {outer}/inner/deep lies in"
    )
    with only_writer_of(outer / "inner" / "deep"), pytest.raises(TrainerError) as caught:
        execute(run, ProgressLog(tmp_path / "progress.jsonl"), StopFlag())
    assert caught.value.code == ExitCode.WORK_DIRECTORY_BUSY
    assert str(caught.value) == f"another job is at work that writes {outer}/inner/deep, in the output {outer}"


@pytest.mark.usefixtures("unchecked_export")
def test_a_lock_that_was_left_in_an_output_is_no_file_of_others(tmp_path: Path, tiny_bert: Path) -> None:
    run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2})
    outer = Path(run.manifest_dir, "out")
    (outer / "inner").mkdir(parents=True)
    (outer / "inner" / ".in-use-deep").touch()
    execute(run, ProgressLog(tmp_path / "progress.jsonl"), StopFlag())
    assert (outer / "config.json").is_file()
    assert not (outer / "inner").exists()


@pytest.mark.usefixtures("unchecked_export")
def test_an_output_in_its_own_work_directory(tmp_path: Path, tiny_bert: Path) -> None:
    run = make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 2}, output={"uri": "file://work/out"})
    for _ in range(2):
        execute(run, ProgressLog(tmp_path / "progress.jsonl"), StopFlag())
    assert (tmp_path / "work" / "out" / "config.json").is_file()
    assert list(tmp_path.rglob(".in-use-*")) == []


def test_of_many_that_come_and_go_one_at_a_time_has_it(tmp_path: Path) -> None:
    """Also in the moment that one removes the file that another has opened already."""
    answers: Queue[int] = FORK.Queue()
    processes = [FORK.Process(target=come_and_go, args=(tmp_path, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    counts = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sum(counts) == len((tmp_path / "journal").read_text().splitlines()) > 0


def come_and_go(directory: Path, answers: Queue[int]) -> None:
    """Take the place again and again; whoever has it finds no mark of another."""
    taken = 0
    mark = directory / "mark"
    for _ in range(2000):
        with ExitStack() as held:
            try:
                held.enter_context(only_writer_of(directory / "out"))
            except TrainerError:
                continue
            mark.touch(exist_ok=False)
            with (directory / "journal").open("a") as journal:
                journal.write("taken\n")
            taken += 1
            mark.unlink()
    answers.put(taken)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_the_file_system_has_no_locks_a_run_says_so_and_goes_on(
    number: int, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file system is a stand-in: what Lustre answers that is mounted without `flock`."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    run = make_run(tmp_path, tiny_bert, FULL)
    assert complete(run)
    for place in (run.work_dir, run.manifest_dir):
        assert f"no lock can be had in {place}: see that no other job writes there" in notes(run)
