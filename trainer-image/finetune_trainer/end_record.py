"""Remembers that a job of several processes has its model: one that comes again must not wait for others that are done.

Kubernetes starts a pod of an Indexed Job again whose end it did not see, but none that has ended well.
"""

from __future__ import annotations

from pathlib import Path

from finetune_api.run import Run
from finetune_api.v1alpha1.status import Progress, Result
from finetune_trainer import records


class EndRecord:
    """The result of one run and its last progress, bound to the job's UID and its spec."""

    def __init__(self, run: Run) -> None:
        self._path = Path(run.work_dir, "result.json")
        self._owner = run.identity()

    def load(self) -> tuple[Result, Progress] | None:
        """Both, if the model was exported."""
        return records.load(
            self._path,
            self._owner,
            lambda kept: (Result.model_validate(kept["result"]), Progress.model_validate(kept["progress"])),
        )

    def save(self, result: Result, progress: Progress) -> None:
        """Keep both: whole on the disk, or not at all. Raises TrainerError when the disk is full."""
        records.save(self._path, self._owner, {"result": result.to_json(), "progress": progress.to_json()})
