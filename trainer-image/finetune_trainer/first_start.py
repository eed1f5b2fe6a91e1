"""Remembers when a run was started for the first time: started again on another day, it must read the very same."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from finetune_api.run import Run
from finetune_trainer import records

_FILE = "first-start.json"


def first_start(run: Run) -> str:
    """The moment in ISO 8601, of this job with this spec; now, if it is not known. Raises TrainerError (disk full)."""
    path = Path(run.work_dir, _FILE)
    known = records.load(path, run.identity(), lambda kept: datetime.fromisoformat(kept["at"]).isoformat())
    if known is not None:
        return known
    now = datetime.now().isoformat(timespec="seconds")
    records.save(path, run.identity(), {"at": now})
    return now
