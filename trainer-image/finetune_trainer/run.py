"""One run from its config to its result: data, model, strategy, loop, export."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.measures import DIVERGENCE, on_retention
from finetune_api.run import Run
from finetune_api.v1alpha1.status import Result
from finetune_trainer import device as devices
from finetune_trainer import distributed, storage
from finetune_trainer.auto.resolve import resolve
from finetune_trainer.checkpoint import CheckpointStore
from finetune_trainer.data.sources import local_path, model_directory
from finetune_trainer.distributed import Ranks
from finetune_trainer.end_record import EndRecord
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.export import check_target, export
from finetune_trainer.export.card import model_card
from finetune_trainer.first_start import first_start
from finetune_trainer.hold import only_trainer_in, only_writer_of
from finetune_trainer.judge import RunState
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.model_checks import model_files
from finetune_trainer.models import Loaded, num_parameters
from finetune_trainer.progress import ProgressLog
from finetune_trainer.remote import fetch as remote
from finetune_trainer.remote import output as remote_output
from finetune_trainer.rendezvous import ALONE, Place, join, leave
from finetune_trainer.stop import StopFlag
from finetune_trainer.strategies import Tuning, prepare
from finetune_trainer.tasks import Task, make_task
from finetune_trainer.watchdog import doing

_SEEN_SECONDS = 120.0
"""Network file systems show a new file late: NFS after a minute at most."""
_NO_LOCK = "no lock can be had in {}: see that no other job writes there"


def execute(run: Run, progress: ProgressLog, stop: StopFlag, place: Place = ALONE) -> Result | None:
    """Train and export a job's model; None where another process of the job exports it. Raises TrainerError."""
    target, work_dir = output_directory(run), Path(run.work_dir)
    if place.size > 1 and (known := EndRecord(run).load()) is not None:
        result, last = known
        progress.ended(last)
        return result if place.rank == 0 else None
    device = devices.pick_device(run.spec.resources.gpus_per_node, place.local_rank, run.has_gpus)
    with doing("meeting the other processes"):
        ranks = join(place, device, stop)
    with ExitStack() as held:
        held.enter_context(doing(within=ranks.patience_seconds))

        def take_place() -> None:
            check_target(target)
            if not held.enter_context(only_trainer_in(work_dir)):
                progress.note(_NO_LOCK.format(work_dir))
            if remote_output.is_remote(run):
                remote_output.check(run.spec.output.uri)
            elif not held.enter_context(only_writer_of(target)):
                progress.note(_NO_LOCK.format(target.parent))

        distributed.only_first(ranks, take_place, stop)
        check_shared(ranks, work_dir, stop)
        note_resources(run, ranks, device, progress)
        moment = datetime.fromisoformat(distributed.first(ranks, lambda: first_start(run), stop))
        run = run.model_copy(update={"first_started_at": moment})
        if remote.is_needed(run):
            with doing("downloading the sources"):
                downloads = distributed.first(ranks, lambda: remote.fetch(run, progress.note, stop), stop)
            run = run.model_copy(update={"downloads": downloads})
        with remote.named_by_uri(run.downloads):
            made = train(run, target, ranks, device, progress, stop)
    leave()
    return made


def output_directory(run: Run) -> Path:
    """Where the model is written: what the output's URI names, or a place from where it is uploaded."""
    if remote_output.is_remote(run):
        return remote_output.directory(run)
    return local_path(run.spec.output.uri, run, ExitCode.OUTPUT_REFUSED)


def train(
    run: Run, target: Path, ranks: Ranks, device: torch.device, progress: ProgressLog, stop: StopFlag
) -> Result | None:
    """What follows once the processes have met, and the first holds the work directory."""
    end_record = EndRecord(run)
    directory, task = ranks.attend(lambda: read(run, progress), stop)
    if run.spec.strategy.auto is not None:
        run = resolve(run.spec.strategy.auto, run, task, directory, device, progress, ranks, stop)
    loaded = ranks.attend(lambda: load(run, task), stop)
    # What one process writes meanwhile, such as a teacher's answers, the others read.
    with doing("preparing the training"):
        tuning = distributed.first_before_others(
            ranks, lambda: prepare(run, task, loaded, directory, device, progress.note), stop
        )
        with doing(on=device):
            tuning.model.to(device)
    checkpoints = CheckpointStore(
        Path(run.work_dir, "checkpoints"),
        run.identity(),
        run.spec.checkpoint.keep,
        progress.note,
        inputs=same_inputs(ranks, ranks.attend(lambda: inputs_digest(task, directory, tuning), stop)),
    )
    with doing("training", on=device):
        state = TrainingLoop(run.spec, task, tuning, checkpoints, progress, stop, device, ranks).run()
    # The last checkpoint is saved; an export could outlast the grace period.
    if distributed.agree_on_any(ranks, stop.is_set):
        raise Stopped(state.step)

    def finish() -> Result:
        result = export_result(run, task, tuning, state, target, progress)
        if remote_output.is_remote(run):
            with doing("uploading the model"):
                remote_output.upload(target, run.spec.output.uri, progress.note, stop)
            shutil.rmtree(target, ignore_errors=True)
        if ranks.size > 1:
            end_record.save(result, progress.latest)
        if run.downloads:
            # Another process may still have them open.
            shutil.rmtree(Path(run.work_dir, remote.FOLDER), ignore_errors=True)
        return result

    # The others stay until it is done: if it fails, all start again.
    return distributed.only_first(ranks, finish, stop)


def note_resources(run: Run, ranks: Ranks, device: torch.device, progress: ProgressLog) -> None:
    """Say what the job trains on."""
    processes = f" in each of {ranks.size} processes" if ranks.size > 1 else ""
    progress.note(f"training on {device.type} with {devices.set_threads()} threads{processes}")
    asked, found = run.spec.resources.gpus_per_node, devices.num_gpus()
    if asked and device.type == "cpu":
        progress.note("a GPU is asked for, but PyTorch finds none: training will take much longer")
    elif asked > found:
        progress.note(f"{asked} GPUs are asked for, but PyTorch finds {found}: training will take longer")


@doing("reading the model and the data")
def read(run: Run, progress: ProgressLog) -> tuple[Path, Task]:
    """The model's directory, and the data as a task. Raises TrainerError."""
    directory = model_directory(run.spec.model, run)
    task = make_task(run, directory)
    for line in task.data_report:
        progress.note(line)
    return directory, task


@doing("loading the model")
def load(run: Run, task: Task) -> Loaded:
    """The model with the task's head. Raises TrainerError."""
    torch.manual_seed(run.spec.training.seed)  # new heads and adapters are drawn from it, the same in all processes
    return task.load_model()


@doing("exporting the model")
def export_result(run: Run, task: Task, tuning: Tuning, state: RunState, target: Path, progress: ProgressLog) -> Result:
    """Export the model with its card; what tuning did. Raises TrainerError."""
    result = make_result(run, task, tuning, state)
    where = run.spec.output.uri if remote_output.is_remote(run) else target
    progress.note(f"exporting to {where}, reloading it in a fresh process and comparing")
    choice = progress.latest.choice
    digest = export(
        target,
        tuning,
        task,
        lambda difference: model_card(run, result, task, difference, choice),
        run.downloads,
    )
    return result.model_copy(update={"digest": digest})


@doing("taking the digest of the model and the data")
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


def same_inputs(ranks: Ranks, digest: str) -> str:
    """The digest, if all processes have read the same. Raises TrainerError."""
    for rank, other in enumerate(distributed.gather(ranks, digest)):
        if other != digest:
            raise TrainerError(
                ExitCode.DATA_INVALID,
                f"the processes {rank} and {ranks.rank} have read different data or model files",
                "let all nodes read the same volumes, and name a revision of what is on a hub",
            )
    return digest


def check_shared(ranks: Ranks, work_dir: Path, stop: StopFlag) -> None:
    """Raise TrainerError unless all processes see the work directory that the first writes to."""
    mark = work_dir / "seen-by-all"
    token = distributed.first(ranks, lambda: write_token(mark) if ranks.size > 1 else "", stop)

    def look() -> None:
        ends_at = time.monotonic() + _SEEN_SECONDS
        while token and not (mark.is_file() and mark.read_text(encoding="utf-8") == token):
            if time.monotonic() > ends_at:
                raise TrainerError(
                    ExitCode.SPEC_INVALID,
                    f"process {ranks.rank} does not see what the first writes to {work_dir}",
                    "put spec.output on a ReadWriteMany volume, which all nodes mount",
                )
            time.sleep(0.2)

    ranks.attend(look, stop)


def write_token(mark: Path) -> str:
    """Write a random word, and return it."""
    token = secrets.token_hex()
    storage.replace_file(mark, token)
    return token


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
    name = on_retention(run.spec.metric())
    found = {"before": state.before.get(name), "after": state.last.get(name), DIVERGENCE: state.last.get(DIVERGENCE)}
    return {key: value for key, value in found.items() if value is not None}
