"""`finetune run`: jobs one after the other on this machine, with progress, metrics and a table at the end."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from rich.console import Console

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.status import Phase, Progress, Result
from finetune_cli.display import Display, make_display
from finetune_cli.local import LocalRefused, Placed
from finetune_cli.metrics import MetricsServer
from finetune_cli.placing import place_all
from finetune_cli.report import print_results
from finetune_cli.stop import StopRequest
from finetune_cli.streams import lasting
from finetune_cli.text import make_console, say
from finetune_cli.trainer import Trainer
from finetune_operator.metrics.figures import JobSample, figures_of

_STOPPING = (
    "stopping: a checkpoint is saved after this step, or the export is finished; press Ctrl-C again to end at once"
)
_LOG_LINES = 15
_KILLED = 128 + signal.SIGKILL


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
            self.phase, figures_of(self.progress, self.result),
        )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Run every job of the manifests until one does not end Complete; returns its exit code, or 0."""
    stop = StopRequest()
    with stop.heard():
        console = make_console(lasting(sys.stdout))
        jobs: list[LocalJob] = []
        with MetricsServer(options.metrics_port, lambda: [job.sample() for job in jobs]) as metrics:
            placed = place_all(options.manifests, dict(options.volume), options.work_dir, options.fresh)
            jobs += map(LocalJob, placed)
            busy = f" (port {options.metrics_port} is in use)" if metrics.moved else ""
            say(console, f"metrics: {metrics.url}{busy}")
            code: int = ExitCode.COMPLETE
            for job in jobs:
                code = _run_job(job, stop, console)
                if code != ExitCode.COMPLETE:
                    break
        done = [(job.placed, job.strategy, job.result) for job in jobs if job.result is not None]
        if done:
            print_results(console, done)
        return code


def _run_job(job: LocalJob, stop: StopRequest, console: Console) -> int:
    placed = job.placed
    name = placed.run.name
    if placed.run.spec.suspend:
        say(console, f"{name}: not run, because spec.suspend is true")
        job.phase = Phase.SUSPENDED
        return ExitCode.STOPPED
    result = placed.result()
    if result is not None and placed.has_model(result):
        say(console, f"{name}: is Complete already; --fresh runs it again")
    elif stop.is_set:
        say(console, f"{name}: not started, because a stop was asked for")
        return ExitCode.STOPPED
    else:
        if result is not None:
            where = placed.output or placed.run.spec.output.uri
            say(console, f"{name}: its model is not in {where} (any more); it goes on from its last checkpoint")
        code = _train(job, stop, console)
        if code != ExitCode.COMPLETE:
            job.phase = Phase.SUSPENDED if code == ExitCode.STOPPED else Phase.FAILED
            return code
    termination = placed.termination()
    job.phase = Phase.COMPLETE
    job.progress, job.result = (termination.progress, termination.result) if termination else (None, None)
    return ExitCode.COMPLETE


def _train(job: LocalJob, stop: StopRequest, console: Console) -> int:
    """Start the trainer and show its events until it ends, and say how; returns its exit code."""
    job.phase = Phase.RUNNING
    run = job.placed.run
    display = make_display(run.name, run.spec.metric(), console)
    try:
        trainer = Trainer(job.placed)
    except LocalRefused as error:
        say(console, f"{run.name}: {error}")
        return error.code
    with trainer, display, stop.passed_to(trainer):
        for event in trainer.events():
            if stop.is_news():
                display.note(_STOPPING)
            if event is not None:
                _show(event, job, display)
        code = trainer.wait()
    code = 128 - code if code < 0 else code
    if code == _KILLED and stop.has_killed:
        say(console, f"{run.name}: ended at once, as asked; the same command goes on from the last checkpoint")
        return ExitCode.STOPPED
    if code != ExitCode.COMPLETE:
        explain(job, code, console)
    return code


def _show(event: dict[str, Any], job: LocalJob, display: Display) -> None:
    match event["event"]:
        case "note":
            display.note(event["text"])
        case "evaluation":
            display.evaluation(event)
        case "progress":
            job.progress = Progress.model_validate(event["progress"])
            display.progress(job.progress)


def explain(job: LocalJob, code: int, console: Console) -> None:
    """Say why a job did not end Complete, and what to do."""
    placed = job.placed
    termination = placed.termination()
    if termination is not None:
        hint = f"\n  {termination.hint}" if termination.hint else ""
        say(console, f"{placed.run.name}: {termination.reason} (exit code {code}): {termination.message}{hint}")
        if termination.exit_code != ExitCode.INTERNAL_ERROR:
            return
    elif code == ExitCode.STOPPED:
        say(console, f"{placed.run.name}: stopped before it could train")
        return
    else:
        by_signal = f"killed by {signal.Signals(code - 128).name}" if code > 128 else f"exit code {code}"
        memory = "; most often memory ran out" if code == _KILLED else ""
        say(console, f"{placed.run.name}: the trainer ended without a last word ({by_signal}{memory})")
    say(console, f"  the log is {placed.log_file}; its end:")
    log = placed.log_file.read_text(encoding="utf-8", errors="replace") if placed.log_file.is_file() else ""
    for line in log.splitlines()[-_LOG_LINES:]:
        say(console, f"  | {line}")
