"""A process that hangs ends itself and says at what; one that is only slow, or was stopped for a while, does not."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, Termination
from finetune_trainer import watchdog
from finetune_trainer.distributed import OneProcess
from finetune_trainer.watchdog import LIMIT_SECONDS, LOOK_SECONDS, Signs, Silence, doing, read_signs
from trainer import processes, ranks
from trainer.processes import exit_code, run_trainer, start_trainer
from trainer.ranks import last_word, on_nodes, run_ranks
from trainer.runs import checkpoints, events
from trainer.tiny import FULL, make_run

STEP = "finetune_trainer.optim:learning_rate_factor"
SAVE = "finetune_trainer.checkpoint:CheckpointStore.save"
LOAD = "finetune_trainer.run:make_task"
SHORT = 3.0
LONGER = 2.5 * SHORT
IMPATIENT = functools.partial(processes.hang_at_most, SHORT)

MIB = 2**20


def signs(at: float, beats: int = 0, cpu: float = 0.0, moved: int = 0, on_gpu: bool = False) -> Signs:
    return Signs(at, beats, cpu, moved, on_gpu)


def silence_after(*looks: Signs) -> float:
    silence = Silence()
    for look in looks:
        silence.look(look)
    return silence.seconds


def test_silence_grows_from_look_to_look() -> None:
    assert silence_after(signs(100)) == 0
    assert silence_after(signs(100), signs(110), signs(121)) == 21


@pytest.mark.parametrize(
    "alive",
    [
        signs(110, beats=1),
        signs(110, cpu=1.0),
        signs(110, moved=MIB),
    ],
    ids=["told", "computed", "read or written"],
)
def test_a_sign_of_life_ends_the_silence(alive: Signs) -> None:
    assert silence_after(signs(90), signs(100), alive) == 0


@pytest.mark.parametrize(
    "barely",
    [
        signs(110, cpu=0.4),
        signs(110, moved=200_000),
    ],
    ids=["the looks themselves", "signs of life to peers"],
)
def test_what_threads_do_that_only_wait_is_no_sign_of_life(barely: Signs) -> None:
    assert silence_after(signs(100), barely) == 10


def test_who_waits_for_a_gpu_keeps_a_core_busy() -> None:
    assert silence_after(signs(100, on_gpu=True), signs(110, cpu=10.0, on_gpu=True)) == 10


def test_time_in_which_nobody_could_look_does_not_count() -> None:
    """A process that was stopped, a laptop that slept."""
    assert silence_after(signs(100), signs(110), signs(9_999)) <= 10 + 2 * LOOK_SECONDS


def test_activities_are_told_one_within_the_other() -> None:
    before = watchdog._told.activity
    beats = watchdog._told.beats
    with doing("training", on=torch.device("cuda"), within=60.0):
        with doing("saving the checkpoint at step 4"):
            inner = watchdog._told.activity
            assert (inner.what, inner.on_gpu, inner.limit) == ("saving the checkpoint at step 4", True, 60.0)
        with doing(on=torch.device("cpu"), within=LIMIT_SECONDS):
            assert (watchdog._told.activity.on_gpu, watchdog._told.activity.limit) == (False, LIMIT_SECONDS)
        assert watchdog._told.activity.what == "training"
    assert watchdog._told.activity == before
    assert watchdog._told.beats > beats


def test_bytes_and_computing_are_seen_of_this_process_and_of_its_child(tmp_path: Path) -> None:
    before = read_signs()
    (tmp_path / "file").write_bytes(bytes(4 * MIB))
    sum(range(3_000_000))
    after = read_signs()
    assert after.bytes_moved - before.bytes_moved >= 4 * MIB
    assert after.cpu_seconds > before.cpu_seconds
    code = f"open({str(tmp_path / 'file')!r}, 'rb').read(); sum(range(10_000_000)); print(flush=True); input()"
    with (
        subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        watchdog.child(process.pid),
    ):
        assert process.stdout is not None
        process.stdout.read(1)
        seen = read_signs()
        process.communicate(b"\n")
    assert seen.bytes_moved - after.bytes_moved >= 4 * MIB
    assert seen.cpu_seconds - after.cpu_seconds >= 0.05


def training(directory: Path, model: Path) -> Run:
    return make_run(
        directory,
        model,
        FULL,
        training={"maxSteps": 6, "batchSize": 8, "learningRate": "2e-3"},
        evaluation={"batchSize": 4},
        checkpoint={"everySteps": 2, "keep": 2},
    )


def said(run: Run) -> Termination:
    return Termination.model_validate_json(Path(run.work_dir, "termination.json").read_text())


@pytest.mark.parametrize(
    ("place", "call", "what"),
    [
        (LOAD, 1, "reading the model and the data"),
        (STEP, 3, "training at step 3"),
        ("finetune_trainer.evaluation:losses.cross_entropy", 1, "evaluating at step 0"),
        (SAVE, 2, "saving the checkpoint at step 4"),
        ("finetune_trainer.run:export", 1, "exporting the model"),
    ],
)
def test_a_process_that_hangs_says_at_what(tiny_bert: Path, tmp_path: Path, place: str, call: int, what: str) -> None:
    run = training(tmp_path, tiny_bert)
    assert run_trainer(run, IMPATIENT, functools.partial(processes.hang_before, place, call)) == ExitCode.HANG
    word = said(run)
    assert (word.exit_code, word.reason) == (ExitCode.HANG, "Hang")
    assert word.message == f"no sign of life for 3 seconds while {what}"
    assert "the next try goes on from the newest checkpoint" in word.hint


def test_a_file_that_never_comes(tiny_bert: Path, tmp_path: Path) -> None:
    """A real wait in the kernel, as for a volume whose server is gone."""
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    run = training(tmp_path, model)
    assert run_trainer(run, IMPATIENT) == ExitCode.HANG
    assert said(run).message.endswith("while reading the model and the data")


def test_the_next_try_goes_on_from_the_newest_checkpoint(tiny_bert: Path, tmp_path: Path) -> None:
    run = training(tmp_path, tiny_bert)
    assert run_trainer(run, IMPATIENT, functools.partial(processes.hang_before, STEP, 6)) == ExitCode.HANG
    word = said(run)
    assert word.progress is not None
    assert word.progress.last_checkpoint is not None
    assert (word.progress.step, word.progress.last_checkpoint.step) == (5, 4)
    assert run_trainer(run, IMPATIENT) == ExitCode.COMPLETE
    assert checkpoints(run)[0].name == "step-00000006"


def test_it_ends_although_its_last_word_hangs_too(tiny_bert: Path, tmp_path: Path) -> None:
    """The last word may go to the very disk that hangs."""
    run = training(tmp_path, tiny_bert)
    Path(run.work_dir).mkdir(parents=True)
    os.mkfifo(Path(run.work_dir, "termination.json"))
    hang = functools.partial(processes.hang_before, STEP, 2)
    assert run_trainer(run, IMPATIENT, functools.partial(processes.speak_at_most, 1.0), hang) == ExitCode.HANG


@pytest.mark.parametrize(
    "slow",
    [
        functools.partial(ranks.slow_batches, 1, 0.5 * SHORT),
        functools.partial(processes.busy_before, STEP, 2, LONGER),
        functools.partial(processes.write_before, LOAD, 1, LONGER),
    ],
    ids=["evaluation", "computing", "writing"],
)
def test_one_that_is_only_slow_goes_on(tiny_bert: Path, tmp_path: Path, slow: Any) -> None:
    if slow.func is processes.write_before:
        slow = functools.partial(slow, tmp_path / "download")
    run = training(tmp_path, tiny_bert)
    start = time.monotonic()
    assert run_trainer(run, IMPATIENT, slow) == ExitCode.COMPLETE
    assert time.monotonic() - start > LONGER


def test_one_that_was_stopped_for_a_while_goes_on(tiny_bert: Path, tmp_path: Path) -> None:
    run = training(tmp_path, tiny_bert)
    process = start_trainer(run, IMPATIENT, functools.partial(processes.signal_before, STEP, 3, signal.SIGSTOP))
    until_stopped(process)
    time.sleep(LONGER)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    assert exit_code(process) == ExitCode.COMPLETE


def until_stopped(process: ForkServerProcess) -> None:
    ends_at = time.monotonic() + 60
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def test_what_checks_the_export_ends_with_it(tiny_bert: Path, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    run = training(tmp_path, tiny_bert)
    assert run_trainer(run, IMPATIENT, functools.partial(processes.hang_in_a_child, pid_file)) == ExitCode.HANG
    with pytest.raises(ProcessLookupError):
        wait_for_the_end(int(pid_file.read_text()))


def wait_for_the_end(pid: int) -> None:
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.05)


def in_step(directory: Path, model: Path) -> Run:
    return on_nodes(training(directory, model), 2)


@pytest.mark.parametrize("hanging", [0, 1])
def test_of_several_processes_the_one_that_hangs_counts_and_no_other(
    tiny_bert: Path, tmp_path: Path, hanging: int
) -> None:
    """In a step, where the others wait for it: the job's end is not later than theirs, and all begin anew together."""
    run = in_step(tmp_path, tiny_bert)
    # Patient by itself: it must end because the others do not wait for longer.
    patience = [functools.partial(processes.hang_at_most, 100.0), functools.partial(ranks.wait_at_most, 5.0)]
    faults = [patience, patience]
    faults[hanging] = [*patience, functools.partial(processes.hang_before, STEP, 4)]
    codes = run_ranks(run, *faults)
    assert codes[hanging] == ExitCode.HANG
    assert codes[1 - hanging] == ExitCode.PEER_LOST
    assert last_word(run, hanging).message == "no sign of life for 5 seconds while training at step 4"
    assert run_ranks(run) == [ExitCode.COMPLETE] * 2
    assert any("resumed from the checkpoint at step 2" in event.get("text", "") for event in events(run))


@pytest.mark.parametrize("place", [SAVE, "finetune_trainer.evaluation:losses.cross_entropy"])
def test_the_first_process_that_hangs_while_the_others_wait_for_its_work(
    tiny_bert: Path, tmp_path: Path, place: str
) -> None:
    """It still shows them that it lives, from a thread of its own."""
    run = in_step(tmp_path, tiny_bert)
    hang = functools.partial(processes.hang_before, place, 1)
    assert run_ranks(run, [IMPATIENT, hang], [IMPATIENT]) == [ExitCode.HANG, ExitCode.PEER_LOST]
    assert last_word(run, 0).exit_code == ExitCode.HANG


def test_those_that_wait_for_long_work_of_the_first_do_not_hang(tiny_bert: Path, tmp_path: Path) -> None:
    run = in_step(tmp_path, tiny_bert)
    slow = functools.partial(ranks.slow_batches, 1, 0.5 * SHORT)
    start = time.monotonic()
    assert run_ranks(run, [IMPATIENT, slow], [IMPATIENT]) == [ExitCode.COMPLETE] * 2
    assert time.monotonic() - start > LONGER


def test_nobody_waits_for_a_process_that_is_alone() -> None:
    assert OneProcess().patience_seconds is None
