"""`finetune run` is asked to stop, or is ended: what was trained is saved, and no trainer is left unwatched."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import termios
from pathlib import Path

import pytest

from trainer.cli_bench import Bench, has_ended, trainer_of, wait_for


@pytest.fixture
def bench(tmp_path: Path, tiny_bert: Path) -> Bench:
    bench = Bench(tmp_path, tiny_bert)
    bench.spec["training"] = {"maxSteps": 3000, "batchSize": 8, "learningRate": "1e-3"}
    return bench


def assert_saves(bench: Bench, trainer: int) -> None:
    wait_for(lambda: has_ended(trainer))
    assert bench.termination()["reason"] == "Stopped"
    assert "a checkpoint is saved" in bench.termination()["message"]


def test_ctrl_c_saves_and_the_second_run_goes_on(bench: Bench) -> None:
    process = bench.start()
    wait_for(lambda: any(event["progress"]["step"] >= 5 for event in bench.events("progress")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "a checkpoint is saved" in output
    stopped_at = bench.termination()["progress"]["step"]
    assert 5 <= stopped_at < 3000
    process = bench.start()
    note = wait_for(lambda: [e["text"] for e in bench.events("note") if "resumed from the checkpoint" in e["text"]])
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert f"step {stopped_at} of 3000" in note[0]


def test_no_trainer_is_left_behind_on_a_second_ctrl_c(bench: Bench) -> None:
    process = bench.start()
    wait_for(lambda: bench.events("progress"))
    trainer = trainer_of(process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert has_ended(trainer)


def test_a_second_ctrl_c_is_told_as_what_it_was(bench: Bench) -> None:
    process = bench.start()
    assert process.stdout is not None
    wait_for(lambda: bench.events("progress"))
    trainer = trainer_of(process)
    os.kill(trainer, signal.SIGSTOP)  # so that the first cannot be served before the second comes
    process.send_signal(signal.SIGINT)
    while "press Ctrl-C again" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "tiny: ended at once, as asked; the same command goes on from the last checkpoint" in output
    assert "memory" not in output
    assert has_ended(trainer)


def test_no_job_starts_after_a_stop_in_the_export(bench: Bench) -> None:
    bench.spec["training"] = {"epochs": 1, "batchSize": 8}
    bench.write_job("second", output={"uri": "pvc://models/second"})
    process = bench.start("second.yaml")
    wait_for(lambda: [event for event in bench.events("note") if event["text"].startswith("exporting")])
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "or the export is finished" in output
    assert "second: not started" in output
    assert bench.termination()["reason"] == "Complete"
    assert (bench.model / "model.safetensors").is_file()
    assert not (bench.directory / ".finetune/default.second/progress.jsonl").exists()


def test_a_stop_in_the_last_export_leaves_nothing_undone(bench: Bench) -> None:
    bench.spec["training"] = {"epochs": 1, "batchSize": 8}
    process = bench.start()
    wait_for(lambda: [event for event in bench.events("note") if event["text"].startswith("exporting")])
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_a_closed_terminal_stops_the_job(bench: Bench) -> None:
    own, theirs = pty.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = bench.start(start_new_session=True, preexec_fn=take_terminal, **terminal)
    os.close(theirs)
    wait_for(lambda: bench.events("progress"))
    trainer = trainer_of(process)
    os.close(own)
    process.wait(60)
    assert process.returncode == 143
    assert_saves(bench, trainer)


def test_a_terminal_that_is_closed_says_so_as_often_as_it_likes(bench: Bench) -> None:
    process = bench.start()
    wait_for(lambda: bench.events("progress"))
    trainer = trainer_of(process)
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert_saves(bench, trainer)


def test_under_nohup_a_closed_terminal_stops_nothing(bench: Bench) -> None:
    process = bench.start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for(lambda: bench.events("progress"))
    process.send_signal(signal.SIGHUP)
    seen = len(bench.events("progress"))
    wait_for(lambda: len(bench.events("progress")) > seen + 5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_trainer_whose_watcher_was_killed_saves_and_ends(bench: Bench) -> None:
    process = bench.start()
    wait_for(lambda: bench.events("progress"))
    trainer = trainer_of(process)
    process.kill()
    process.communicate(timeout=60)
    assert_saves(bench, trainer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_reader_that_goes_away_first_costs_no_checkpoint(bench: Bench, number: signal.Signals) -> None:
    """As in `finetune run job.yaml | tee log`: Ctrl-C ends tee, too."""
    process = bench.start()
    assert process.stdout is not None
    process.stdout.close()
    wait_for(lambda: bench.events("progress"))
    trainer = trainer_of(process)
    process.send_signal(number)
    assert process.wait(60) == 143
    assert_saves(bench, trainer)
