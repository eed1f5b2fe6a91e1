"""Tells whether the operator still does its work: its watches bring news, its resync passes, no worker is stuck."""

from __future__ import annotations

import time
from collections.abc import Callable

STUCK_SECONDS = 300.0
_MISSED_RESYNCS = 3


class Health:
    """Signs of life, and the verdict over them."""

    def __init__(
        self,
        resync_seconds: float,
        longest_running: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resync_seconds = resync_seconds
        self._longest_running = longest_running
        self._clock = clock
        self._resynced_at: float | None = None
        self._resyncs_with_news = 0

    def resynced(self, missed: int) -> None:
        """A resync has passed; `missed` objects were news that no watch had brought."""
        self._resynced_at = self._clock()
        self._resyncs_with_news = self._resyncs_with_news + 1 if missed else 0

    def unhealthy(self) -> str | None:
        """Why the process should be started anew, or None. A replica that has not led yet is healthy."""
        if self._longest_running() > STUCK_SECONDS:
            return f"a worker has been at one job for {self._longest_running():.0f} s"
        if self._resynced_at is None:
            return None
        silent = self._clock() - self._resynced_at
        if silent > _MISSED_RESYNCS * self._resync_seconds:
            return f"no resync has passed for {silent:.0f} s"
        if self._resyncs_with_news >= _MISSED_RESYNCS:
            return f"{self._resyncs_with_news} resyncs in a row found changes that no watch had brought"
        return None
