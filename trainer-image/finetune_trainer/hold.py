"""What one trainer holds against every other: its work directory, and the place of its output."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors

_LOCK_PREFIX = ".in-use-"


@contextmanager
def only_trainer_in(work_dir: Path) -> Iterator[None]:
    """Hold the work directory: two trainers would overwrite each other's checkpoints. Raises TrainerError."""
    with storage_errors(work_dir):
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = (work_dir / "lock").open("w")
    with lock:
        if not _locked(lock):
            raise _busy(f"another trainer is at work in {work_dir}", "wait for it, or stop it")
        yield


@contextmanager
def only_writer_of(output: Path) -> Iterator[None]:
    """Hold the place of an output, from the start: of two jobs, one would lose what it trained. Raises TrainerError.

    The lock is a file beside it that goes when it is let go.
    """
    output = output.resolve()
    path = output.with_name(f"{_LOCK_PREFIX}{output.name}")
    with storage_errors(path):
        lock = _open(path)
    if lock is None:
        raise _busy(
            f"another job is at work that writes the same output, {output}",
            "give each job an output of its own, or wait until the other has ended",
        )
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open(path: Path) -> TextIO | None:
    """The file at that path, locked; None if another process has locked it."""
    while True:
        lock = path.open("w")
        if not _locked(lock):
            lock.close()
            return None
        # Whoever had it may have removed it between the two lines above, and then a third may hold another file there.
        try:
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except FileNotFoundError:
            pass
        lock.close()


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(message: str, hint: str) -> TrainerError:
    return TrainerError(ExitCode.WORK_DIRECTORY_BUSY, message, hint)
