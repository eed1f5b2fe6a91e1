"""One run from its config to its result: data, model, strategy, loop, export."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.support import unsupported
from finetune_api.v1alpha1.status import Result
from finetune_trainer import device as devices
from finetune_trainer import forgetting, storage
from finetune_trainer.checkpoint import CheckpointStore
from finetune_trainer.data.sources import local_path, model_directory
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.export import check_target, export
from finetune_trainer.export.card import model_card
from finetune_trainer.judge import DIVERGENCE, RETENTION, RunState
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.models import model_files, num_parameters
from finetune_trainer.progress import ProgressLog
from finetune_trainer.stop import StopFlag
from finetune_trainer.strategies import Tuning, prepare
from finetune_trainer.tasks import Task, make_task


def execute(run: Run, progress: ProgressLog, stop: StopFlag) -> Result:
    """Train and export a job's model. Raises TrainerError."""
    spec, work_dir = run.spec, Path(run.work_dir)
    refuse_unsupported(run)
    target = local_path(spec.output.uri, run)
    check_target(target)
    with only_trainer_in(work_dir):
        device = devices.pick_device(spec.resources.gpus_per_node)
        progress.note(f"training on {device.type} with {devices.set_threads()} threads")
        if spec.resources.gpus_per_node and device.type == "cpu":
            progress.note("a GPU is asked for, but PyTorch finds none: training will take much longer")
        directory = model_directory(spec.model, run)
        task = make_task(run, directory)
        for line in task.data_report:
            progress.note(line)
        torch.manual_seed(spec.training.seed)  # new heads and adapters are drawn from it
        loaded = task.load_model()
        tuning = prepare(run, task, loaded, directory, device, progress.note)
        tuning.model.to(device)
        checkpoints = CheckpointStore(
            work_dir / "checkpoints",
            f"{run.uid}/{run.digest()}",
            spec.checkpoint.keep,
            progress.note,
            inputs=inputs_digest(task, directory, tuning),
        )
        state = TrainingLoop(spec, task, tuning, checkpoints, progress, stop, device).run()
        if stop.is_set:  # the last checkpoint is saved; an export could outlast the grace period
            raise Stopped(state.step)
        result = make_result(run, task, tuning, state)
        progress.note(f"exporting to {target}, reloading it in a fresh process and comparing")
        digest = export(
            target, tuning, task, lambda difference: model_card(run, result, task, tuning.loader, difference)
        )
        return result.model_copy(update={"digest": digest})


def refuse_unsupported(run: Run) -> None:
    """Raise TrainerError when the spec has a field that this release would ignore."""
    if problems := unsupported(run.spec):
        raise TrainerError(ExitCode.SPEC_INVALID, "; ".join(map(str, problems)))


def inputs_digest(task: Task, model_directory: Path, tuning: Tuning) -> str:
    """A digest over what the URIs of the spec held: the rows as they are trained on, the model's files, the others.

    Somebody may mend the data and start the job again; checkpoints of the old data must not pass for the new.
    """
    digest = hashlib.sha256(tuning.inputs.encode())
    for examples in (task.train, task.evaluation, task.retention):
        for example in examples:
            digest.update(repr(example).encode())
        digest.update(b"/")
    storage.add_files(digest, model_files(model_directory))
    return digest.hexdigest()


def make_result(run: Run, task: Task, tuning: Tuning, state: RunState) -> Result:
    """What tuning did; the digest is filled in after the export."""
    trained = {id(entry.parameter) for entry in tuning.trained.values()}
    return Result(
        uri=run.spec.output.uri,
        digest="sha256:" + "0" * 64,
        metric=run.spec.metric(),
        before=state.before,
        after=state.last,
        baseline=task.baseline,
        # Of the model alone: what only helps to train it, such as a projection to its teacher's width, is left behind.
        trainable_parameters=num_parameters(one for one in tuning.model.parameters() if id(one) in trained),
        # peft trains a copy of the head and keeps the original, which is not a part of the tuned model.
        total_parameters=num_parameters(
            parameter for name, parameter in tuning.model.named_parameters() if ".original_module." not in name
        ),
        steps=state.step,
        stopped_early=state.stopped_early,
        duration_seconds=state.seconds,
        forgetting=forgetting_of(run, state),
    )


def forgetting_of(run: Run, state: RunState) -> dict[str, float]:
    """The deciding metric on the retention rows before and after, and the divergence from the base."""
    name = forgetting.name_of(RETENTION, run.spec.metric())
    found = {"before": state.before.get(name), "after": state.last.get(name), DIVERGENCE: state.last.get(DIVERGENCE)}
    return {key: value for key, value in found.items() if value is not None}


@contextmanager
def only_trainer_in(work_dir: Path) -> Iterator[None]:
    """Hold the work directory: two trainers would overwrite each other's checkpoints."""
    with storage.storage_errors(work_dir):
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = (work_dir / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainerError(
                ExitCode.WORK_DIRECTORY_BUSY, f"another trainer is at work in {work_dir}", "wait for it, or stop it"
            ) from None
        yield
