"""A run that is killed anywhere goes on, and ends with the very bits of a run that was not."""

from __future__ import annotations

import functools
import itertools
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from trainer import processes
from trainer.eventful import RATES, Reference
from trainer.processes import run_trainer
from trainer.runs import checkpoints, end_state, notes, output

KILLED = -signal.SIGKILL
WRITE = "finetune_trainer.storage:write_directory"
# Twenty random moments, each strategy's in turn.
KILLS = [(name, number) for number, name in zip(range(20), itertools.cycle(RATES), strict=False)]


def test_on_two_threads(reference: Reference, tmp_path: Path) -> None:
    two = functools.partial(processes.threads, 2)
    undisturbed, killed = reference.again(tmp_path / "undisturbed"), reference.again(tmp_path / "killed")
    assert run_trainer(undisturbed, two) == ExitCode.COMPLETE
    middle = functools.partial(processes.kill_at_event, reference.num_events // 2)
    assert run_trainer(killed, two, middle) == KILLED
    assert run_trainer(killed, two) == ExitCode.COMPLETE
    assert end_state(killed) == end_state(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), KILLS)
def test_killed_anywhere(references: dict[str, Reference], tmp_path: Path, name: str, number: int) -> None:
    reference = references[name]
    run = reference.again(tmp_path)
    event = random.Random(f"{name}{number}").randrange(1, int(0.95 * reference.num_events))
    assert run_trainer(run, functools.partial(processes.kill_at_event, event)) == KILLED
    assert not output(run).exists()
    survived = [path.name for path in checkpoints(run)] if Path(run.work_dir, "checkpoints").exists() else []
    assert run_trainer(run) == ExitCode.COMPLETE
    assert any("resumed from the checkpoint" in note for note in notes(run)) == bool(survived)
    reference.check(run)


@pytest.mark.slow
def test_killed_again_and_again(reference: Reference, tmp_path: Path) -> None:
    """Asynchronously, in C++ code too; from a few milliseconds after its start on."""
    undisturbed = reference.again(tmp_path / "undisturbed")
    assert run_trainer(undisturbed) == ExitCode.COMPLETE
    seconds = json.loads((checkpoints(undisturbed)[0] / "state.json").read_text())["seconds"]
    run, generator, num_kills = reference.again(tmp_path / "killed"), random.Random(reference.name), 0
    # Three kills, each within the first third of a run's time, leave no time for it to end.
    while num_kills < 12 and run_trainer(
        run, functools.partial(processes.kill_after, generator.uniform(0.0, 0.3 * seconds))
    ):
        num_kills += 1
    assert num_kills >= 3
    assert run_trainer(run) == ExitCode.COMPLETE
    reference.check(run)


def moments(start: str) -> Iterator[tuple[int, int]]:
    """Calls of write_directory, each with how far into it: about 300 events make one."""
    generator = random.Random(start)
    for call in range(1, 9):
        yield call, generator.choice((1, 10, 40, 80, 120, 160, 200, 240, 280, 320, 100_000))


@pytest.mark.slow
def test_killed_in_every_write(reference: Reference, tmp_path: Path) -> None:
    """Checkpoints and best weights, while they are filled, renamed or have just been written; one after the other."""
    run = reference.again(tmp_path)
    for call, event in moments(reference.name):
        # A resumed run has fewer writes before it, so this gets on by a write or more each time.
        code = run_trainer(run, functools.partial(processes.kill_within, WRITE, 1 + call % 3, event))
        if code == ExitCode.COMPLETE:
            break
        assert code == KILLED
    assert run_trainer(run) == ExitCode.COMPLETE
    reference.check(run)


@pytest.mark.slow
@pytest.mark.parametrize("event", [1, 20, 60, 100_000])
def test_killed_while_old_checkpoints_are_dropped(references: dict[str, Reference], tmp_path: Path, event: int) -> None:
    run = references["full"].again(tmp_path)
    drop = "finetune_trainer.checkpoint:CheckpointStore._drop_unwanted"
    for call in (3, 1, 2):
        assert run_trainer(run, functools.partial(processes.kill_within, drop, call, event)) == KILLED
    assert run_trainer(run) == ExitCode.COMPLETE
    references["full"].check(run)


@pytest.mark.slow
@pytest.mark.parametrize("event", [1, 100, 1000, 3000, 100_000_000])
def test_killed_while_exporting(reference: Reference, tmp_path: Path, event: int) -> None:
    run = reference.again(tmp_path)
    kill = functools.partial(processes.kill_within, "finetune_trainer.run:export", 1, event)
    assert run_trainer(run, kill) == KILLED
    assert output(run).exists() == (event > 3000)
    assert run_trainer(run) == ExitCode.COMPLETE
    assert any("resumed from the checkpoint" in note for note in notes(run))
    reference.check(run)


@pytest.mark.slow
def test_killed_while_an_earlier_output_is_replaced(references: dict[str, Reference], tmp_path: Path) -> None:
    run = references["full"].again(tmp_path)
    assert run_trainer(run) == ExitCode.COMPLETE
    earlier = output(run) / "README.md"
    earlier.write_text("the earlier one")
    for event in (2, 4, 6, 8, 12, 16, 24):
        kill = functools.partial(processes.kill_within, "finetune_trainer.storage:_replace", 1, event)
        assert run_trainer(run, kill) == KILLED
        # Whole in one place or the other: what was there must not be lost before what comes is there.
        kept = [path for path in (output(run), output(run).parent / ".replaced-out") if path.exists()]
        assert any((path / "model.safetensors").exists() for path in kept)
    assert run_trainer(run) == ExitCode.COMPLETE
    references["full"].check(run)
