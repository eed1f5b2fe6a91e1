"""Keeps small things beside a run's checkpoints, bound to what they are of: a restart elsewhere must find the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer import storage

Kept = TypeVar("Kept")


def load(path: Path, owner: Any, read: Callable[[dict[str, Any]], Kept]) -> Kept | None:
    """What `read` makes of what was kept; None where there is nothing, nothing whole, or nothing of this owner."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return read(kept) if kept["owner"] == owner else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def save(path: Path, owner: Any, content: dict[str, Any]) -> None:
    """Keep it: whole on the disk, or not at all. Raises TrainerError when the disk is full."""
    storage.replace_file(path, json.dumps({"owner": owner, **content}))
