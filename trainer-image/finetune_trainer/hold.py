"""What one trainer holds against every other: its work directory, and the place of its output."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import storage_errors

LOCK = "lock"
"""The file in a work directory that its trainer holds. It stays: a new one would be another lock."""
_LOCK_PREFIX = ".in-use-"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)
"""What a file system says that has none, such as Lustre mounted without `flock`, or NFS for one that is only read."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT)
"""Why no lock can be made beside an output; by the end of training, the output may be."""


@contextmanager
def only_trainer_in(work_dir: Path) -> Iterator[bool]:
    """Hold the work directory: two trainers would overwrite each other's checkpoints. Raises TrainerError.

    Yields whether it is held: not every file system has locks.
    """
    with storage_errors(work_dir):
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = (work_dir / LOCK).open("ab+", buffering=0)
    with lock:
        is_held = _locked(lock)
        if is_held is False:
            lock.seek(0)
            holder = _alive(lock.read())
            raise _busy(
                f"another trainer is at work in {work_dir}{f' (process {holder})' if holder else ''}",
                f"wait for it, or stop it{f': kill {holder}' if holder else ''}",
            )
        with contextlib.suppress(OSError):  # a full disk holds up no trainer that may have nothing to write
            lock.truncate(0)
            lock.write(_known_as(os.getpid()))
        yield is_held is True


@contextmanager
def only_writer_of(output: Path) -> Iterator[bool]:
    """Hold the place of an output, from the start: of two jobs, one would lose what it trained. Raises TrainerError.

    The lock is a file beside it that goes when it is let go. Yields whether it is held: not every file system has
    locks, or room for one.
    """
    output = output.resolve()
    path = output.with_name(f"{_LOCK_PREFIX}{output.name}")
    lock: IO[bytes] | None = None
    is_held: bool | None = None
    with storage_errors(path):
        try:
            lock, is_held = _open(path)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
    if is_held is False:
        raise _busy(
            f"another job is at work that writes the same output, {output}",
            "give each job an output of its own, or wait until the other has ended",
        )
    try:
        _check_not_within_another(output)
        yield is_held is True
    finally:
        if lock is not None:
            with lock, contextlib.suppress(OSError):  # in a shared folder, another user's may have to stay
                path.unlink()


def writers_within(output: Path, files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of the files in an output: the outputs in it that others write now, and the files that are no locks of such.

    A lock that nobody holds is what a killed trainer left.
    """
    locks = {name: PurePath(name) for name in files if PurePath(name).name.startswith(_LOCK_PREFIX)}
    written = [
        str(path.with_name(path.name.removeprefix(_LOCK_PREFIX)))
        for name, path in locks.items()
        if _is_held(output / name)
    ]
    return written, [name for name in files if name not in locks]


def _check_not_within_another(output: Path) -> None:
    """Raise TrainerError when the output lies in another that is being written: it would be replaced with that."""
    for outer in output.parents:
        if outer.name and _is_held(outer.with_name(f"{_LOCK_PREFIX}{outer.name}")):
            raise _busy(
                f"another job is at work that writes {outer}, which the output {output} lies in",
                "name a directory outside it",
            )


def _is_held(path: Path) -> bool:
    """Whether a trainer holds that lock now."""
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # most often, there is none
        return False
    return False


def _open(path: Path) -> tuple[IO[bytes], bool | None]:
    """The file at that path, and whether it is locked; closed if another process has locked it."""
    while True:
        lock = _made(path)
        if lock is None:
            continue
        is_held = _locked(lock)
        if is_held is False:
            lock.close()
            return lock, False
        # Whoever had it may have removed it between the two lines above, and then a third may hold another file there.
        try:
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock, is_held
        except FileNotFoundError:
            pass
        lock.close()


def _made(path: Path) -> IO[bytes] | None:
    """The file at that path, for every user to lock; None if another's was there and has just gone."""
    try:
        lock = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "rb", buffering=0)
    except PermissionError:  # another user's, of an earlier release or in a folder for all
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError:
            if os.access(path.parent, os.W_OK | os.X_OK):
                return None
        raise
    with contextlib.suppress(OSError):  # another user's, who has done so
        os.fchmod(lock.fileno(), 0o666)
    return lock


def _known_as(process: int) -> bytes:
    """A process's number and when it started, so that it is not taken for one of another pod or machine."""
    try:
        started = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19]
    except OSError:
        return b""
    return b"%d %s" % (process, started)


def _alive(known_as: bytes) -> int | None:
    """The number of the process that is known as this, if it is one of this machine."""
    number = known_as.partition(b" ")[0]
    return int(number) if number.isdigit() and _known_as(int(number)) == known_as else None


def _locked(lock: IO[Any]) -> bool | None:
    """Whether a file is locked now, for this process alone; None where the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _busy(message: str, hint: str) -> TrainerError:
    return TrainerError(ExitCode.WORK_DIRECTORY_BUSY, message, hint)
