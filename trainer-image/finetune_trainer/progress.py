"""Records how a run goes: a JSON line an event, a report to the operator, the last word in the termination message."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import ValidationError

from finetune_api.problems import printable
from finetune_api.run import Termination
from finetune_api.v1alpha1.status import CheckpointStatus, Progress, StrategyChoice
from finetune_trainer import storage
from finetune_trainer.errors import TrainerError

TERMINATION_LIMIT_BYTES = 4096
_MIN_INTERVAL_SECONDS = 0.1

logger = logging.getLogger(__name__)


class ProgressLog:
    """Appends events to `progress.jsonl`, or to nothing, and hands the progress to `report`.

    A failure to write is logged and never stops training.
    """

    def __init__(self, path: Path | None, report: Callable[[Progress], None] = lambda progress: None) -> None:
        self._path = path
        self._report = report
        self._total_steps = 0
        self._progress = Progress(step=0, total_steps=0, percent=0)
        self._started_at = time.monotonic()
        self._started_step = 0
        self._written_at = -math.inf
        self._tokens = 0
        self._losses: list[float] = []
        self._is_failing = False

    @property
    def latest(self) -> Progress:
        """The newest state."""
        return self._progress

    def note(self, text: str) -> None:
        """A sentence for people. It may quote names from the data, which must not look like lines of the log."""
        text = printable(text)
        logger.info("%s", text)
        self._append({"event": "note", "text": text})

    def chosen(self, choice: StrategyChoice) -> None:
        """strategy.auto has become a strategy."""
        self._update(choice=choice)
        self._append_progress()

    def ended(self, progress: Progress) -> None:
        """The run had come to its end before."""
        self._progress = progress
        self._append_progress()

    def resumed(self, step: int, saved_at: datetime | None, evaluation: dict[str, float]) -> None:
        """What a checkpoint says is known again."""
        checkpoint = CheckpointStatus(step=step, time=saved_at or _now())
        self._update(step=step, evaluation=dict(evaluation), last_checkpoint=checkpoint)

    def start(self, step: int, total_steps: int) -> None:
        """Training starts (or goes on) at a step."""
        self._total_steps = total_steps
        self._started_at, self._started_step = time.monotonic(), step
        self._written_at, self._tokens = time.monotonic(), 0
        self._update(step=step, total_steps=total_steps, percent=_percent(step, total_steps))
        self._append_progress()

    def step(
        self,
        step: int,
        *,
        loss: float,
        terms: dict[str, float],
        learning_rate: float,
        grad_norm: float,
        epoch: float,
        tokens: int,
        device: torch.device,
    ) -> None:
        """A step is done. Written at most ten times a second; the loss is then a mean over the steps in between.

        `terms` are the weighted parts of the loss by name, where there is more than one.
        """
        self._losses.append(loss)
        self._tokens += tokens
        now = time.monotonic()
        remaining = self._total_steps - step
        seconds_per_step = (now - self._started_at) / (step - self._started_step)
        self._update(
            step=step,
            percent=_percent(step, self._total_steps),
            epoch=round(epoch, 3),
            eta_seconds=round(remaining * seconds_per_step),
            loss=_shown(sum(self._losses) / len(self._losses)),
            loss_terms={name: shown for name, value in terms.items() if (shown := _shown(value)) is not None},
            learning_rate=_shown(learning_rate),
            grad_norm=_shown(grad_norm),
            tokens_per_second=round(self._tokens / max(now - self._written_at, 1e-6), 1),
            memory_peak_bytes=_memory_peak_bytes(device),
        )
        if now - self._written_at >= _MIN_INTERVAL_SECONDS or step == self._total_steps:
            self._written_at, self._tokens, self._losses = now, 0, []
            self._append_progress()

    def evaluation(self, when: str, step: int, metrics: dict[str, float], forgetting: float | None) -> None:
        """An evaluation is done: "before", "during" or "after" training."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._update(evaluation=finite, forgetting=forgetting)
        self._append({"event": "evaluation", "when": when, "step": step, "metrics": finite})
        self._append_progress()

    def finish(self, step: int) -> None:
        """Training has come to its end; where that is before the last step that was planned, no more are."""
        self._update(step=step, total_steps=step, percent=100, eta_seconds=0)
        self._append_progress()

    def checkpoint(self, step: int) -> None:
        """A checkpoint is saved."""
        self._update(last_checkpoint=CheckpointStatus(step=step, time=_now()))
        self._append_progress()

    def _update(self, **changes: Any) -> None:
        self._progress = self._progress.model_copy(update={**changes, "updated": _now()})

    def _append_progress(self) -> None:
        self._append({"event": "progress", "progress": self._progress.to_json()})
        self._report(self._progress)

    def _append(self, event: dict[str, Any]) -> None:
        if self._path is None:
            return
        line = json.dumps({"time": _now().isoformat(), **event}, allow_nan=False)
        try:
            with self._path.open("a+b") as file:
                # A line that was cut short (killed, disk full) must not spoil this one.
                start = b"\n" if _is_cut_short(file) else b""
                file.write(start + line.encode() + b"\n")
        except OSError as error:
            if not self._is_failing:
                logger.warning("progress is not recorded: %s", error)
            self._is_failing = True
        else:
            self._is_failing = False


def write_termination(path: Path, termination: Termination) -> None:
    """Write the last word, within what Kubernetes keeps of it. A failure is logged."""
    text = _fitting(termination)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A device such as /dev/stdout must not be replaced, though root could.
        if not path.is_symlink() and (path.is_file() or not path.exists()):
            with contextlib.suppress(OSError, TrainerError):
                storage.replace_file(path, text)
                return
        path.write_text(text, encoding="utf-8")  # nor can a mounted file, which /dev/termination-log is
    except OSError as error:
        logger.warning("the termination message is not written: %s", error)


def read_termination(path: Path) -> Termination | None:
    """The last word that a process left; None if it could not say one."""
    try:
        return Termination.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _fitting(termination: Termination) -> str:
    """The last word as JSON; what is too long goes, the least needed first."""
    shorter: tuple[dict[str, Any], ...] = (
        {},
        {"progress": _essence(termination.progress)},
        {"message": termination.message[:300]},
        {"hint": ""},
        {"progress": None},
        {"result": None},
    )
    text = ""
    for changes in shorter:
        termination = termination.model_copy(update=changes)
        text = termination.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= TERMINATION_LIMIT_BYTES:
            break
    return text


def _essence(progress: Progress | None) -> Progress | None:
    """How far, and what was chosen; figures of the end are in the result too."""
    if progress is None:
        return None
    kept = {name: getattr(progress, name) for name in ("step", "total_steps", "percent", "choice")}
    return Progress(**kept)


def _is_cut_short(file: BinaryIO) -> bool:
    """Whether a file ends in the middle of a line."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def _percent(step: int, total_steps: int) -> int:
    return 100 * step // total_steps if total_steps else 0


def _shown(value: float) -> float | None:
    """Seven significant digits, which is what float32 has; nothing when not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _now() -> datetime:
    return datetime.now(UTC)


def _memory_peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
