"""Ends a process that hangs, with an exit code that says so: a thread of its own looks whether anything gets on.

Signs of life are what the code tells (a part of a step, a batch, another activity), bytes that are read or written, and
computing. While a GPU is at work computing is none: who waits for a GPU that hangs keeps a core busy. A process that is
stopped, or whose machine sleeps, does not look either, so that time does not count.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from finetune_api.exit_codes import ExitCode

LIMIT_SECONDS = 1800.0
"""Without a sign of life. There is none while a disk takes in what was written, which is minutes for many GB."""
LOOK_SECONDS = 10.0
LAST_WORD_SECONDS = 10.0
"""For the last word: the disk that it goes to may be what hangs."""
HINT = (
    "the end of the log shows where each thread stood; check the node's storage, network and GPU; "
    "the next try goes on from the newest checkpoint"
)
_BUSY_RATIO = 0.05
"""Of a core. Threads that only wait, look and report use less."""
_BYTES_PER_SECOND = 25_000
"""Fewer are no sign of life: the processes of a job exchange some even when one of them hangs."""
_PROCESSES = Path("/proc")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Activity:
    """What the process is about."""

    what: str = "starting"
    on_gpu: bool = False
    limit_seconds: float | None = None
    """When less than LIMIT_SECONDS will do."""

    @property
    def limit(self) -> float:
        return LIMIT_SECONDS if self.limit_seconds is None else self.limit_seconds


class _Told:
    """What the process tells of itself."""

    def __init__(self) -> None:
        self.activity = Activity()
        self.beats = 0
        self.children: set[int] = set()


_told = _Told()


def beat() -> None:
    """Something got on."""
    _told.beats += 1


@contextmanager
def doing(what: str | None = None, *, on: torch.device | None = None, within: float | None = None) -> Iterator[None]:
    """Tell what follows, on which device, and how many seconds it may be silent; as before where nothing is given.

    The main thread's word counts alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _told.activity
    _told.activity = replace(
        before,
        what=before.what if what is None else what,
        on_gpu=before.on_gpu if on is None else on.type != "cpu",
        limit_seconds=before.limit_seconds if within is None else within,
    )
    beat()
    try:
        yield
    finally:
        _told.activity = before
        beat()


@contextmanager
def child(pid: int) -> Iterator[None]:
    """What this child does counts too; it ends with this process when that hangs."""
    _told.children.add(pid)
    try:
        yield
    finally:
        _told.children.discard(pid)


@dataclass(frozen=True, slots=True)
class Signs:
    """What can be seen of a process at a moment, all of it counted from its start."""

    at: float
    beats: int
    cpu_seconds: float
    bytes_moved: int
    on_gpu: bool


class Silence:
    """How long there has been no sign of life."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last: Signs | None = None

    def look(self, signs: Signs) -> None:
        """Compare with the last look; the time since counts as no longer than looks are late on a busy machine."""
        last, self._last = self._last, signs
        if last is None or _lives(last, signs):
            self.seconds = 0.0
        else:
            self.seconds += min(signs.at - last.at, 2 * LOOK_SECONDS)


class Watchdog:
    """Ends the process with HANG, after `say` has been told why, when there was no sign of life for too long."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if (_PROCESSES / "self" / "io").exists():  # elsewhere nothing tells whether a download gets on
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()

    def _run(self) -> None:
        silence = Silence()
        while not self._done.wait(LOOK_SECONDS):
            silence.look(read_signs())
            activity = _told.activity
            if silence.seconds >= activity.limit:
                self._end(f"no sign of life for {_spelt(activity.limit)} while {activity.what}")

    def _end(self, message: str) -> None:
        for pid in list(_told.children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        teller = threading.Thread(target=self._tell, args=(message,), daemon=True)
        teller.start()
        teller.join(LAST_WORD_SECONDS)
        os._exit(ExitCode.HANG)

    def _tell(self, message: str) -> None:
        self._say(message)
        faulthandler.dump_traceback(sys.stderr)


def read_signs() -> Signs:
    """The signs of this process and of the children that count."""
    cpu_seconds, bytes_moved = time.process_time(), _bytes_moved("self")
    for pid in list(_told.children):
        cpu_seconds += _cpu_seconds(pid)
        bytes_moved += _bytes_moved(str(pid))
    return Signs(time.monotonic(), _told.beats, cpu_seconds, bytes_moved, _told.activity.on_gpu)


def _lives(last: Signs, now: Signs) -> bool:
    seconds = now.at - last.at
    is_computing = not now.on_gpu and now.cpu_seconds - last.cpu_seconds > _BUSY_RATIO * seconds
    return now.beats != last.beats or is_computing or now.bytes_moved - last.bytes_moved > _BYTES_PER_SECOND * seconds


def _cpu_seconds(pid: int) -> float:
    """What a process has used; nothing once it has ended."""
    try:
        fields = (_PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
    except (OSError, ValueError, IndexError):
        return 0.0


def _bytes_moved(process: str) -> int:
    """What a process has read and written, through memory-mapped files too; nothing once it has ended."""
    try:
        lines = (_PROCESSES / process / "io").read_text().splitlines()
        counters = dict(line.split(": ") for line in lines)
        return sum(int(counters[name]) for name in ("rchar", "wchar", "read_bytes"))
    except (OSError, ValueError, LookupError):
        return 0


def _spelt(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"
