"""Tells that memory ran out, and which field of the spec takes less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

TRAINING_HINT = "set training.microBatchSize lower (same result), lower data.maxLength, use adapters, or give more"
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "'out of memory'",  # NCCL's: Cuda failure 2 'out of memory'
    "STATUS_ALLOC_FAILED",  # CUBLAS_ and CUDNN_
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On a CPU torch says so with a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _WORDS)


def is_said_in(last_words: str) -> bool:
    """Whether memory ran out in a process that has failed, by what it wrote."""
    return any(words in last_words for words in (*_WORDS, "MemoryError"))


def words_of(error: Exception) -> str:
    """What ran out, in one line."""
    lines = str(error).splitlines() or ["out of memory"]
    return next((line for line in lines if any(words in line for words in _WORDS)), lines[0])


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
