"""Saves and finds checkpoints: whole or absent, bound to the job and its spec, the newest valid one is used."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer import storage

_FORMAT = 2  # raised when older checkpoints could no longer be resumed from
_NAME = re.compile(r"step-(\d{8,})")
_BEST_NAME = re.compile(r"best-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state."""

    step: int
    weights: dict[str, Tensor]
    """The trained parameters."""
    optimizer: dict[str, Tensor]
    random: dict[str, Tensor]
    """States of the random number generators, by device; of all processes."""
    state: dict[str, Any]
    """What else is needed to go on: sampler, controller, figures. Plain JSON."""
    saved_at: datetime | None = None
    """When it was written."""


class CheckpointStore:
    """The checkpoints of one run; one process at a time.

    `owner` names the job's UID and spec, `inputs` what its URIs held: the checkpoints of any other are never used.
    """

    def __init__(self, directory: Path, owner: str, keep: int, notify: Callable[[str], None], inputs: str = "") -> None:
        self._owner = _short(f"{_FORMAT}/{owner}")
        self._directory = directory / f"{self._owner}-{_short(inputs)}"
        self._keep = keep
        self._notify = notify
        self._unusable: set[Path] = set()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and then drop those no longer wanted. Raises TrainerError when the disk is full."""

        def fill(directory: Path) -> None:
            save_file(checkpoint.weights, directory / "weights.safetensors")
            save_file(checkpoint.optimizer, directory / "optimizer.safetensors")
            save_file(checkpoint.random, directory / "random.safetensors")
            storage.write_json(directory / "state.json", checkpoint.state)

        written = self._step(checkpoint.step)
        storage.write_directory(written, fill)
        self._unusable.discard(written)
        self._drop_unwanted()

    def _drop_unwanted(self) -> None:
        # Those that could not be used must not count, or they would push out the ones that can be.
        usable = [path for _, path in self._steps(_NAME) if path not in self._unusable]
        for path in [*usable[self._keep :], *self._unusable]:
            storage.remove(path)
        self._unusable.clear()
        # A best one is dropped only now that no checkpoint which a run may resume from speaks of it any more.
        wanted = {_best_step(path) for path in usable[: self._keep]}
        for step, path in self._steps(_BEST_NAME):
            if step not in wanted:
                storage.remove(path)

    def save_best(self, step: int, weights: dict[str, Tensor]) -> None:
        """Write the weights of the best evaluation so far."""
        storage.write_directory(
            self._best(step), lambda directory: save_file(weights, directory / "weights.safetensors")
        )

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The weights saved as the best, at that step."""
        self._check_best(step)
        return load_file(self._best(step) / "weights.safetensors")

    def save_base(self, tensors: dict[str, Tensor]) -> None:
        """Write what the model said before training."""
        storage.write_directory(self._base, lambda directory: save_file(tensors, directory / "predictions.safetensors"))

    def load_base(self) -> dict[str, Tensor] | None:
        """What the model said before training; None, and said why, where it cannot be read."""
        try:
            storage.check_directory(self._base)
        except storage.NotWhole as error:
            self._notify(f"the divergence from the base is not measured: {error}")
            return None
        return load_file(self._base / "predictions.safetensors")

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint of this run."""
        step = self.newest_step()
        return None if step is None else self.load(step)

    def newest_step(self) -> int | None:
        """The step of the newest valid checkpoint of this run; says which ones it passes over and why."""
        self._note_others()
        storage.tidy(self._directory)
        for step, path in self._steps(_NAME):
            try:
                storage.check_directory(path)
                state = json.loads((path / "state.json").read_text(encoding="utf-8"))
                if (best := state.get("best_step")) is not None:
                    self._check_best(best)
            except (storage.NotWhole, OSError, ValueError) as error:
                self._notify(f"checkpoint {path.name} is not used: {error}")
                self._unusable.add(path)
                continue
            return step
        return None

    def _note_others(self) -> None:
        """Say which checkpoints are there that are not of this run, if it has none of its own."""
        others = [path.name for path in self._directory.parent.glob("*-*") if path != self._directory]
        if any(name.startswith(f"{self._owner}-") for name in others):
            self._notify("there are checkpoints of other data or another model than now; they are not used")
        elif others and not self._directory.exists():
            self._notify("there are checkpoints of another run or release; they are not used")

    def load(self, step: int) -> Checkpoint:
        """A checkpoint that has been found to be valid."""
        path = self._step(step)
        return Checkpoint(
            step=step,
            weights=load_file(path / "weights.safetensors"),
            optimizer=load_file(path / "optimizer.safetensors"),
            random=load_file(path / "random.safetensors"),
            state=json.loads((path / "state.json").read_text(encoding="utf-8")),
            saved_at=datetime.fromtimestamp((path / storage.MANIFEST).stat().st_mtime, UTC),
        )

    @property
    def _base(self) -> Path:
        return self._directory / "base"

    def _step(self, step: int) -> Path:
        return self._directory / f"step-{step:08d}"

    def _best(self, step: int) -> Path:
        return self._directory / f"best-{step:08d}"

    def _check_best(self, step: int) -> None:
        try:
            storage.check_directory(self._best(step))
        except storage.NotWhole as error:
            raise storage.NotWhole(f"of the best weights, saved as {self._best(step).name}, {error}") from None

    def _steps(self, name: re.Pattern[str]) -> list[tuple[int, Path]]:
        """Checkpoint directories of a kind, newest first."""
        if not self._directory.is_dir():
            return []
        found = [(int(match[1]), path) for path in self._directory.iterdir() if (match := name.fullmatch(path.name))]
        return sorted(found, reverse=True)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _best_step(checkpoint: Path) -> int | None:
    """The best step that a checkpoint speaks of; a torn one cannot be resumed from and needs nothing kept."""
    try:
        best: int | None = json.loads((checkpoint / "state.json").read_text(encoding="utf-8")).get("best_step")
    except (OSError, ValueError, AttributeError):
        return None
    return best
