"""Remembers that a job of several processes has its model: one that comes again must not wait for others that are done.

Kubernetes starts a pod of an Indexed Job again whose end it did not see, but none that has ended well.
"""

from __future__ import annotations

import json
from pathlib import Path

from finetune_api.run import Run
from finetune_api.v1alpha1.status import Progress, Result
from finetune_trainer import storage


class EndRecord:
    """The result of one run and its last progress, bound to the job's UID and its spec."""

    def __init__(self, run: Run) -> None:
        self._path = Path(run.work_dir, "result.json")
        self._owner = run.identity()

    def load(self) -> tuple[Result, Progress] | None:
        """Both, if the model was exported."""
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if kept["owner"] != self._owner:
                return None
            return Result.model_validate(kept["result"]), Progress.model_validate(kept["progress"])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def save(self, result: Result, progress: Progress) -> None:
        """Keep both: whole on the disk, or not at all. Raises TrainerError when the disk is full."""
        kept = {"owner": self._owner, "result": result.to_json(), "progress": progress.to_json()}
        storage.replace_file(self._path, json.dumps(kept))
