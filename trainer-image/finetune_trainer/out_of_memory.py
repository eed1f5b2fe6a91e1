"""Tells that memory ran out, and which field of the spec takes less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

TRAINING_HINT = "set training.microBatchSize lower (same result), lower data.maxLength, use adapters, or give more"
_WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "CUDA error: out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On a CPU torch says so with a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _WORDS)


def words_of(error: Exception) -> str:
    """What ran out, in one line."""
    return str(error).partition("\n")[0] or "out of memory"


@contextmanager
def evaluating(batch_size: int) -> Iterator[None]:
    """Raise TrainerError where so many rows at once, without gradients, are more than fit."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainerError(
            ExitCode.OUT_OF_MEMORY,
            f"with {batch_size} rows at once, without training on them: {words_of(error)}",
            f"set evaluation.batchSize lower (now {batch_size}; same result), lower data.maxLength, or give more",
        ) from None
