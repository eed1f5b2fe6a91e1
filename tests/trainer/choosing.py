"""Changes of what strategy.auto sees, also for processes of their own."""

from __future__ import annotations


def memory_is(size: int | None) -> None:
    """So many bytes are there."""
    from finetune_trainer.auto import read

    read.memory_there = lambda device: size  # type: ignore[assignment]


def many_rows_are(count: int) -> None:
    """So many rows are enough for full tuning, or tests would have to train on thousands."""
    from finetune_trainer.auto import choose

    choose.FULL_FROM_ROWS = count
