"""What is missing of the packages that only some commands need, and how to get it."""

from __future__ import annotations

import importlib.util


def lack_of(packages: tuple[str, ...], extras: str) -> str:
    """A sentence on the packages that are not installed, which those extras bring; empty if all are."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    how = f"in a checkout of the finetune-operator: pip install '.[{extras}]'"
    return f"needs {', '.join(missing)}, which cannot be found; {how}" if missing else ""
