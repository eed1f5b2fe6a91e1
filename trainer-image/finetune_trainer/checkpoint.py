"""Saves and finds checkpoints: whole or absent, bound to the job and its spec, the newest valid one is used."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer import storage

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
    """States of the random number generators, by device."""
    state: dict[str, Any]
    """What else is needed to go on: sampler, controller, figures. Plain JSON."""


class CheckpointStore:
    """The checkpoints of one run. `owner` names the job's UID and spec: those of any other are never seen."""

    def __init__(self, directory: Path, owner: str, keep: int, notify: Callable[[str], None]) -> None:
        self._directory = directory / hashlib.sha256(owner.encode()).hexdigest()[:16]
        self._keep = keep
        self._notify = notify

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and then drop those no longer wanted. Raises TrainerError when the disk is full."""

        def fill(directory: Path) -> None:
            save_file(checkpoint.weights, directory / "weights.safetensors")
            save_file(checkpoint.optimizer, directory / "optimizer.safetensors")
            save_file(checkpoint.random, directory / "random.safetensors")
            storage.write_json(directory / "state.json", checkpoint.state)

        storage.write_directory(self._directory / f"step-{checkpoint.step:08d}", fill)
        steps = self._steps(_NAME)
        for _, path in steps[self._keep :]:
            shutil.rmtree(path)
        # A best one is dropped only now that no checkpoint which a run may resume from speaks of it any more.
        wanted = {_best_step(path) for _, path in steps[: self._keep]}
        for step, path in self._steps(_BEST_NAME):
            if step not in wanted:
                shutil.rmtree(path)

    def save_best(self, step: int, weights: dict[str, Tensor]) -> None:
        """Write the weights of the best evaluation so far."""
        storage.write_directory(
            self._directory / f"best-{step:08d}",
            lambda directory: save_file(weights, directory / "weights.safetensors"),
        )

    def load_best(self, step: int) -> dict[str, Tensor]:
        """The weights saved as the best, at that step."""
        directory = self._directory / f"best-{step:08d}"
        storage.check_directory(directory)
        return load_file(directory / "weights.safetensors")

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint of this run; says which ones it passes over and why."""
        for step, path in self._steps(_NAME):
            try:
                storage.check_directory(path)
                state = json.loads((path / "state.json").read_text())
                if (best := state.get("best_step")) is not None:
                    storage.check_directory(self._directory / f"best-{best:08d}")
            except (storage.NotWhole, OSError, ValueError) as error:
                self._notify(f"checkpoint {path.name} is not used: {error}")
                continue
            return Checkpoint(
                step=step,
                weights=load_file(path / "weights.safetensors"),
                optimizer=load_file(path / "optimizer.safetensors"),
                random=load_file(path / "random.safetensors"),
                state=state,
            )
        return None

    def _steps(self, name: re.Pattern[str]) -> list[tuple[int, Path]]:
        """Checkpoint directories of a kind, newest first."""
        if not self._directory.is_dir():
            return []
        found = [(int(match[1]), path) for path in self._directory.iterdir() if (match := name.fullmatch(path.name))]
        return sorted(found, reverse=True)


def _best_step(checkpoint: Path) -> int | None:
    """The best step that a checkpoint speaks of; a torn one cannot be resumed from and needs nothing kept."""
    try:
        best: int | None = json.loads((checkpoint / "state.json").read_text()).get("best_step")
    except (OSError, ValueError):
        return None
    return best
