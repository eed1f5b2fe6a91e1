"""Keeps a job's choice beside its checkpoints: a restart elsewhere, with other memory, must not change the strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.run import Run
from finetune_trainer import records, storage
from finetune_trainer.auto.choose import Choice
from finetune_trainer.auto.facts import Facts

_FILE = "choice.json"


class ChoiceRecord:
    """The choice of one run, bound as its checkpoints are: to the job's UID, its spec, its rows and its model."""

    def __init__(self, run: Run, facts: Facts) -> None:
        self._directory = Path(run.work_dir, "choice")
        self._owner: dict[str, Any] = {
            "uid": run.uid,
            "digest": run.digest(),
            "rows": facts.rows,
            "units": facts.units,
            "model": facts.model.kind,
            "parameters": facts.model.parameters,
        }

    def load(self) -> Choice | None:
        """The choice that was kept; None where there is none, or not of this run."""
        try:
            storage.check_directory(self._directory)
        except (storage.NotWhole, OSError, ValueError, LookupError, TypeError):
            return None
        return records.load(self._directory / _FILE, self._owner, Choice.from_json)

    def save(self, choice: Choice) -> None:
        """Keep a choice: whole on the disk, or not at all. Raises TrainerError when the disk is full."""
        content = {"owner": self._owner, **choice.to_json()}
        storage.write_directory(self._directory, lambda directory: storage.write_json(directory / _FILE, content))
