"""Remembers when a run was started for the first time: started again on another day, it must read the very same."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from finetune_api.run import Run
from finetune_trainer import storage

_FILE = "first-start.json"


def first_start(run: Run) -> str:
    """The moment in ISO 8601, of this job with this spec; now, if it is not known. Raises TrainerError (disk full)."""
    path = Path(run.work_dir, _FILE)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["owner"] == run.identity():
            return datetime.fromisoformat(kept["at"]).isoformat()
    except (OSError, ValueError, LookupError, TypeError):
        pass
    now = datetime.now().isoformat(timespec="seconds")
    storage.replace_file(path, json.dumps({"owner": run.identity(), "at": now}))
    return now
