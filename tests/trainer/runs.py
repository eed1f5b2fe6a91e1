"""Runs the trainer in the test's own process, and reads what it left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.run import Run, Termination
from finetune_trainer.__main__ import run_to_termination
from finetune_trainer.checkpoint import CheckpointStore
from finetune_trainer.data.sources import model_directory
from finetune_trainer.distributed import OneProcess
from finetune_trainer.errors import Stopped
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.progress import ProgressLog
from finetune_trainer.run import inputs_digest
from finetune_trainer.stop import StopFlag
from finetune_trainer.strategies import prepare
from finetune_trainer.tasks import make_task

CPU = torch.device("cpu")


def finish(run: Run, stop: StopFlag | None = None) -> Termination:
    """Run to the end, whatever it is."""
    return run_to_termination(run, stop or StopFlag())


def complete(run: Run) -> Termination:
    """Run to the good end."""
    termination = finish(run)
    assert termination.reason == "Complete", termination.message
    return termination


def make_loop(run: Run, stop: StopFlag | None = None) -> TrainingLoop:
    """The loop of a run, made as `execute` makes it."""
    work_dir = Path(run.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    directory = model_directory(run.spec.model, run)
    task = make_task(run, directory)
    torch.manual_seed(run.spec.training.seed)
    progress = ProgressLog(work_dir / "progress.jsonl")
    tuning = prepare(run, task, task.load_model(), directory, CPU, progress.note)
    checkpoints = CheckpointStore(
        work_dir / "checkpoints",
        run.identity(),
        run.spec.checkpoint.keep,
        progress.note,
        inputs=inputs_digest(task, directory, tuning),
    )
    return TrainingLoop(run.spec, task, tuning, checkpoints, progress, stop or StopFlag(), CPU, OneProcess())


def interrupted(loop: TrainingLoop, num_steps: int) -> TrainingLoop:
    """Run until the loop is told to stop within that step; it saves and stops after it."""
    train_step = loop.train_step

    def step() -> float:
        loop.stop.is_set = loop.state.step == num_steps - 1
        return train_step()

    loop.train_step = step  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        loop.run()
    return loop


def without_dropout(loop: TrainingLoop) -> TrainingLoop:
    """Dropout off, in the adapters too."""
    for module in loop.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return loop


def events(run: Run) -> list[dict[str, Any]]:
    """Everything in progress.jsonl."""
    lines = Path(run.work_dir, "progress.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def notes(run: Run) -> list[str]:
    """The sentences in progress.jsonl."""
    return [event["text"] for event in events(run) if event["event"] == "note"]


def output(run: Run) -> Path:
    """Where the model goes."""
    return run.local_path(run.spec.output.uri)


def output_weights(run: Run) -> dict[str, bytes]:
    """The exported weights, as they lie on the disk."""
    return {path.name: path.read_bytes() for path in output(run).glob("*.safetensors")}


def checkpoint_directory(run: Run) -> Path:
    """The only run's checkpoints."""
    [directory] = Path(run.work_dir, "checkpoints").iterdir()
    return directory


def checkpoints(run: Run) -> list[Path]:
    """Checkpoints, newest first."""
    return sorted(checkpoint_directory(run).glob("step-*"), reverse=True)


def leftovers(directory: Path) -> list[Path]:
    """What an unfinished write leaves anywhere in a directory."""
    return [*directory.rglob(".incomplete-*"), *directory.rglob(".replaced-*")]


def end_state(run: Run) -> dict[str, Any]:
    """All that two runs of the same spec must agree on to the last bit: weights, optimizer, generators, decisions."""
    newest = checkpoints(run)[0]
    state = json.loads((newest / "state.json").read_text())
    state.pop("seconds")
    tensors = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    return {"step": newest.name, "state": state, "output": output_weights(run), **tensors}
