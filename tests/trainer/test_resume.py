"""A run that is stopped anywhere goes on, and ends with the very bits of a run that was not."""

from __future__ import annotations

import functools
import signal
from pathlib import Path

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, Termination
from trainer import processes
from trainer.eventful import RATES, Reference, eventful_run
from trainer.processes import run_trainer
from trainer.runs import checkpoint_directory, checkpoints, end_state, events, output


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
