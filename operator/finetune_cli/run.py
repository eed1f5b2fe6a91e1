"""`finetune run`: jobs one after the other on this machine, with progress, metrics and a table at the end."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from finetune_api.exit_codes import ExitCode
from finetune_api.manifest import ManifestInvalid, load_jobs
from finetune_api.v1alpha1.status import Phase, Progress, Result
from finetune_cli.display import Display, make_display
from finetune_cli.local import Placed, parse_volumes, place
from finetune_cli.metrics import MetricsServer
from finetune_cli.report import print_results
from finetune_cli.trainer import Trainer
from finetune_operator.metrics.jobs import JobSample

_LOG_LINES = 15
_PLAIN_WIDTH = 160  # without a terminal the width is unknown, and a path cut in two could not be copied


class LocalJob:
    """A job and what is known of it; the metrics are made from it."""

    def __init__(self, placed: Placed) -> None:
        self.placed = placed
        self.phase = Phase.PENDING
        self.progress: Progress | None = None
        self.result: Result | None = None

    @property
    def strategy(self) -> str:
        """The strategy's name; of auto, the chosen one once there is one."""
        choice = self.progress.choice if self.progress else None
        return choice.strategy.value if choice else self.placed.run.spec.strategy.name

    def sample(self) -> JobSample:
        """The job as the metrics see it."""
        run = self.placed.run
        return JobSample(
            run.namespace, run.name, run.spec.task, self.strategy, run.spec.model.uri,
            self.phase, self.progress, self.result,
        )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Run every job of the manifests until one does not end Complete; returns its exit code, or 0."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    jobs = [LocalJob(placed) for placed in _place_all(options)]
    with MetricsServer(options.metrics_port, lambda: [job.sample() for job in jobs]) as metrics:
        busy = f" (port {options.metrics_port} is in use)" if metrics.moved else ""
        _say(console, f"metrics: {metrics.url}{busy}")
        code: int = ExitCode.COMPLETE
        for job in jobs:
            code = _run_job(job, console)
            if code != ExitCode.COMPLETE:
                break
    done = [(job.placed, job.strategy, job.result) for job in jobs if job.result is not None]
    if done:
        print_results(console, done)
    return code


def _place_all(options: argparse.Namespace) -> list[Placed]:
    volumes = parse_volumes(options.volume)
    jobs = [(path, job) for path in options.manifests for job in load_jobs(path)]
    names = [(job.metadata.namespace, job.metadata.name) for _, job in jobs]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ManifestInvalid([f"the job {name!r} is given more than once" for _, name in repeated])
    return [place(job, path, volumes, Path(options.work_dir), options.fresh) for path, job in jobs]


def _run_job(job: LocalJob, console: Console) -> int:
    placed = job.placed
    name = placed.run.name
    if placed.run.spec.suspend:
        _say(console, f"{name}: not run, because spec.suspend is true")
        job.phase = Phase.SUSPENDED
        return ExitCode.STOPPED
    if placed.is_complete():
        _say(console, f"{name}: is Complete already; --fresh runs it again")
    else:
        code = _train(job, console)
        if code != ExitCode.COMPLETE:
            job.phase = Phase.SUSPENDED if code == ExitCode.STOPPED else Phase.FAILED
            _explain(job, code, console)
            return code
    termination = placed.termination()
    job.phase = Phase.COMPLETE
    job.progress, job.result = (termination.progress, termination.result) if termination else (None, None)
    return ExitCode.COMPLETE


def _train(job: LocalJob, console: Console) -> int:
    """Start the trainer and show its events until it ends; returns its exit code."""
    job.phase = Phase.RUNNING
    run = job.placed.run
    display = make_display(run.name, run.spec.metric(), console)
    with Trainer(job.placed) as trainer, display, _stopping(trainer, display):
        for event in trainer.events():
            match event["event"]:
                case "note":
                    display.note(event["text"])
                case "evaluation":
                    display.evaluation(event)
                case "progress":
                    job.progress = Progress.model_validate(event["progress"])
                    display.progress(job.progress)
        code = trainer.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _stopping(trainer: Trainer, display: Display) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks the trainer to save and stop, a second one ends it at once."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            trainer.kill()
        else:
            asked = True
            trainer.stop()
            display.note("stopping after this step and saving a checkpoint; press Ctrl-C again to end at once")

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _explain(job: LocalJob, code: int, console: Console) -> None:
    """Say why a job did not end Complete, and what to do."""
    placed = job.placed
    termination = placed.termination()
    if termination is not None:
        hint = f"\n  {termination.hint}" if termination.hint else ""
        _say(console, f"{placed.run.name}: {termination.reason} (exit code {code}): {termination.message}{hint}")
        if termination.exit_code != ExitCode.INTERNAL_ERROR:
            return
    else:
        by_signal = f"killed by {signal.Signals(code - 128).name}" if code > 128 else f"exit code {code}"
        memory = "; most often memory ran out" if code == 128 + signal.SIGKILL else ""
        _say(console, f"{placed.run.name}: the trainer ended without a last word ({by_signal}{memory})")
    _say(console, f"  the log is {placed.log_file}; its end:")
    for line in placed.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]:
        _say(console, f"  | {line}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
