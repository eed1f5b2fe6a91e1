"""Two trainers never write to one place: the later one ends before it trains, and says what to do."""

from __future__ import annotations

import multiprocessing
from contextlib import ExitStack
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.hold import only_writer_of
from finetune_trainer.progress import ProgressLog
from finetune_trainer.run import execute
from finetune_trainer.stop import StopFlag
from trainer.processes import run_trainer
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
