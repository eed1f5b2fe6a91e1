"""A queue of keys: each at most once queued and once at work; with delays, and a backoff for each key."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 300.0
_STALE_LIMIT = 1000
"""So many superseded delays are kept at least before they are thrown away."""


class WorkQueue(Generic[Key]):
    """A key added while it is at work is queued again once that work is done, so no change is ever missed."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, jitter: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._ready: deque[Key] = deque()
        self._queued: dict[Key, float] = {}
        self._working: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._delayed: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._order = 0
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: Key) -> None:
        """Queue a key, unless it is queued."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued[key] = self._clock()
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue a key later; the earliest of several times counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock() + seconds
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._delayed, (due, self._order, key))
        if len(self._delayed) > 2 * len(self._due) + _STALE_LIMIT:
            self._delayed = [entry for entry in self._delayed if self._due.get(entry[2]) == entry[0]]
            heapq.heapify(self._delayed)
        self._wake.set()

    async def get(self) -> tuple[Key, float]:
        """The next key, and the seconds it waited. `done` or `failed` must follow."""
        while True:
            self._promote()
            if self._ready:
                key = self._ready.popleft()
                now = self._clock()
                waited = now - self._queued.pop(key)
                self._working[key] = now
                return key, waited
            self._wake.clear()
            timeout = max(0.0, self._delayed[0][0] - self._clock()) if self._delayed else None
            # Not `asyncio.wait_for`: where the key comes in the turn in which the worker is cancelled, Python 3.11's
            # forgets that it is, and a worker that never ends keeps the whole process.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    def done(self, key: Key) -> None:
        """The work on a key succeeded."""
        self._failures.pop(key, None)
        self._finish(key)

    def failed(self, key: Key) -> float:
        """The work on a key failed: it comes again after a backoff, which is returned."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self._finish(key)
        seconds = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0**failures) * (0.5 + self._jitter() / 2)
        self.add_after(key, seconds)
        return seconds

    def failures(self, key: Key) -> int:
        """How often in a row the work on a key has failed."""
        return self._failures.get(key, 0)

    def forget(self, key: Key) -> None:
        """The key's object is gone: no delay and no backoff of it is kept."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    def longest_running_seconds(self) -> float:
        """How long the oldest work has been going on; 0 when there is none."""
        now = self._clock()
        return now - min(self._working.values(), default=now)

    def _finish(self, key: Key) -> None:
        del self._working[key]
        if key in self._again:
            self._again.discard(key)
            self._queued[key] = self._clock()
            self._ready.append(key)
            self._wake.set()

    def _promote(self) -> None:
        """Move delayed keys that are due to the queue."""
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:  # an entry that was superseded or forgotten is stale
                self.add(key)
