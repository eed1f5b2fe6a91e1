"""A run that is killed or stopped anywhere goes on, and ends with the very bits of a run that was not."""

from __future__ import annotations

import functools
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, Termination
from trainer import processes
from trainer.processes import run_trainer
from trainer.runs import checkpoint_directory, checkpoints, end_state, events, leftovers, notes, output
from trainer.tiny import STRATEGIES, make_run

NUM_KILLS = 20
# With these each run stops early, two evaluations after its best one, in its fourth epoch or later.
RATES = {"full": "5e-3", "houlsby": "2e-3", "lora": "3e-2"}
KILLED = -signal.SIGKILL
EVALUATE = "finetune_trainer.loop:evaluate"
WRITE = "finetune_trainer.storage:write_directory"


def eventful_run(directory: Path, model: Path, name: str, **fields: Any) -> Run:
    """Dropout, buckets, epochs whose last batch is smaller, micro-batches, early stopping; saved out of step."""
    defaults: dict[str, Any] = {
        "num_train": 28,
        "training": {"epochs": 10, "batchSize": 8, "microBatchSize": 5, "learningRate": RATES[name]},
        "evaluation": {"everySteps": 3, "metric": "loss", "earlyStopping": {"patience": 2}},
        "checkpoint": {"everySteps": 4, "keep": 2},
    }
    return make_run(directory, model, STRATEGIES[name], **(defaults | fields))


class Reference:
    """A run that nothing disturbed."""

    def __init__(self, directory: Path, model: Path, name: str) -> None:
        self.name = name
        self.model = model
        self.run = eventful_run(directory / "run", model, name)
        answer = directory / "events"
        assert run_trainer(self.run, functools.partial(processes.count_events, answer)) == ExitCode.COMPLETE
        self.num_events = int(answer.read_text())
        self.end = end_state(self.run)

    def again(self, directory: Path) -> Run:
        return eventful_run(directory, self.model, self.name)

    def check(self, run: Run) -> None:
        """`run` has ended with the same bits, and with nothing left lying about."""
        end = end_state(run)
        differing = [key for key, value in self.end.items() if end[key] != value]
        assert not differing
        assert not leftovers(output(run).parent)


@pytest.fixture(scope="module")
def references(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    return {name: Reference(tmp_path_factory.mktemp(name), tiny_bert, name) for name in RATES}


@pytest.fixture(params=RATES)
def reference(request: pytest.FixtureRequest, references: dict[str, Reference]) -> Reference:
    return references[request.param]


def termination(run: Run) -> Termination:
    return Termination.model_validate_json(Path(run.work_dir, "termination.json").read_text())


def test_reference_is_eventful(reference: Reference) -> None:
    state = reference.end["state"]
    assert state["stopped_early"]
    assert 0 < state["best_step"] < state["step"]
    assert state["sampler"]["epoch"] >= 3


def test_a_second_run_gives_the_same_bits(reference: Reference, tmp_path: Path) -> None:
    run = reference.again(tmp_path)
    assert run_trainer(run) == ExitCode.COMPLETE
    reference.check(run)


def test_on_two_threads(reference: Reference, tmp_path: Path) -> None:
    two = functools.partial(processes.threads, 2)
    undisturbed, killed = reference.again(tmp_path / "undisturbed"), reference.again(tmp_path / "killed")
    assert run_trainer(undisturbed, two) == ExitCode.COMPLETE
    middle = functools.partial(processes.kill_at_event, reference.num_events // 2)
    assert run_trainer(killed, two, middle) == KILLED
    assert run_trainer(killed, two) == ExitCode.COMPLETE
    assert end_state(killed) == end_state(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(NUM_KILLS))
def test_killed_anywhere(reference: Reference, tmp_path: Path, number: int) -> None:
    run = reference.again(tmp_path)
    event = random.Random(f"{reference.name}{number}").randrange(1, int(0.95 * reference.num_events))
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


@pytest.mark.parametrize("step", [1, 4, 10])
def test_sigterm_within_a_step(reference: Reference, tmp_path: Path, step: int) -> None:
    run = reference.again(tmp_path)
    in_step = "finetune_trainer.optim:learning_rate_factor"
    assert run_trainer(run, functools.partial(processes.signal_before, in_step, step)) == ExitCode.STOPPED
    assert checkpoints(run)[0].name == f"step-{step:08d}"  # the step was finished and saved
    assert not output(run).exists()
    last_word = termination(run)
    assert last_word.reason == "Stopped"
    assert f"step {step}" in last_word.message
    assert last_word.progress is not None
    assert last_word.progress.step == step
    assert last_word.progress.last_checkpoint is not None
    assert last_word.progress.last_checkpoint.step == step
    assert run_trainer(run) == ExitCode.COMPLETE
    reference.check(run)


@pytest.mark.parametrize("call", [1, 2, 4])
def test_sigterm_within_an_evaluation(reference: Reference, tmp_path: Path, call: int) -> None:
    """Also within the one before training, twice over: nothing is lost and nothing is counted twice."""
    run = reference.again(tmp_path)
    batches = "finetune_trainer.evaluation:by_length"
    assert run_trainer(run, functools.partial(processes.signal_before, batches, call)) == ExitCode.STOPPED
    step = 3 * (call - 1)
    assert checkpoints(run)[0].name == f"step-{step:08d}"
    # The evaluation is made up first; stopped in it again, then right after it.
    assert run_trainer(run, functools.partial(processes.signal_before, batches, 1)) == ExitCode.STOPPED
    assert checkpoints(run)[0].name == f"step-{step:08d}"
    in_step = "finetune_trainer.optim:learning_rate_factor"
    assert run_trainer(run, functools.partial(processes.signal_before, in_step, 1)) == ExitCode.STOPPED
    assert checkpoints(run)[0].name == f"step-{step + 1:08d}"
    assert run_trainer(run) == ExitCode.COMPLETE
    reference.check(run)
    evaluated = [event["step"] for event in events(run) if event["event"] == "evaluation" and event["when"] != "after"]
    assert evaluated == sorted(set(evaluated))


def test_second_sigterm_is_harmless(references: dict[str, Reference], tmp_path: Path) -> None:
    run = references["full"].again(tmp_path)
    first = functools.partial(
        processes.signal_before, "finetune_trainer.optim:learning_rate_factor", 5, signal.SIGTERM, 2
    )
    # The next ones come while the checkpoint is written.
    while_saving = functools.partial(processes.signal_before, "finetune_trainer.storage:_fsync", 18, signal.SIGTERM, 3)
    interrupt = functools.partial(processes.signal_before, "finetune_trainer.storage:_replace", 4, signal.SIGINT)
    assert run_trainer(run, first, while_saving, interrupt) == ExitCode.STOPPED
    assert checkpoints(run)[0].name == "step-00000005"
    assert run_trainer(run) == ExitCode.COMPLETE
    references["full"].check(run)


def test_stopped_while_the_best_weights_are_evaluated(references: dict[str, Reference], tmp_path: Path) -> None:
    """The last checkpoint stays that of the last step; the best weights must not be saved as if they were."""
    reference = references["full"]
    run = reference.again(tmp_path)
    restore = "finetune_trainer.judge:Judge.best"
    assert run_trainer(run, functools.partial(processes.signal_before, restore, 1)) == ExitCode.STOPPED
    assert not output(run).exists()
    assert checkpoints(run)[0].name == reference.end["step"]
    assert (checkpoints(run)[0] / "weights.safetensors").read_bytes() == reference.end["weights.safetensors"]
    assert run_trainer(run) == ExitCode.COMPLETE
    reference.check(run)


def test_stopped_before_the_export(references: dict[str, Reference], tmp_path: Path) -> None:
    """An export may take longer than the grace period; the checkpoint is there already."""
    run = references["lora"].again(tmp_path)
    result = "finetune_trainer.loop:TrainingLoop._load_weights"
    assert run_trainer(run, functools.partial(processes.signal_before, result, 1)) == ExitCode.STOPPED
    assert not output(run).exists()
    assert run_trainer(run) == ExitCode.COMPLETE
    references["lora"].check(run)


def test_a_complete_run_is_exported_again(reference: Reference, tmp_path: Path) -> None:
    run = reference.again(tmp_path)
    assert run_trainer(run) == ExitCode.COMPLETE
    before = checkpoint_directory(run).stat().st_mtime_ns
    assert run_trainer(run) == ExitCode.COMPLETE
    assert checkpoint_directory(run).stat().st_mtime_ns == before  # it did not train again
    reference.check(run)


def test_the_verdict_of_early_stopping_survives(references: dict[str, Reference], tmp_path: Path) -> None:
    """Stopped after the first evaluation without gain: the second one ends the run, patience does not start anew."""
    reference = references["full"]
    best = reference.end["state"]["best_step"]
    run = reference.again(tmp_path)
    in_step = "finetune_trainer.optim:learning_rate_factor"
    assert run_trainer(run, functools.partial(processes.signal_before, in_step, best + 4)) == ExitCode.STOPPED
    assert run_trainer(run) == ExitCode.COMPLETE
    reference.check(run)
    result = termination(run).result
    assert result is not None
    assert (result.stopped_early, result.steps) == (True, best + 6)


def test_seeds_differ(references: dict[str, Reference], tmp_path: Path) -> None:
    """What makes the equal ends above worth something."""
    reference = references["full"]
    training = {"epochs": 10, "batchSize": 8, "microBatchSize": 5, "learningRate": RATES["full"], "seed": 43}
    run = eventful_run(tmp_path, reference.model, "full", training=training)
    assert run_trainer(run) == ExitCode.COMPLETE
    assert end_state(run)["output"] != reference.end["output"]
