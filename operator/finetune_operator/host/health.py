"""Tells whether the operator still does its work: its watches bring news, its resync passes, no worker is stuck."""

from __future__ import annotations

import time
from collections.abc import Callable

STUCK_SECONDS = 300.0
FIRST_LIST_SECONDS = 120.0
"""A leader that has not read the cluster by then does nothing for anybody, and had better say so by ending."""
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
        self._leads_since: float | None = None
        self._list_error = ""
        self._resynced_at: float | None = None
        self._resyncs_with_news = 0

    def leads(self) -> None:
        """From now on the replica acts, and begins by reading the cluster."""
        self._leads_since = self._clock()

    def list_failed(self, error: str) -> None:
        """The cluster could not be read; it is tried again."""
        self._list_error = error

    def resynced(self, missed: int) -> None:
        """A resync has passed; `missed` objects were news that no watch had brought."""
        self._resynced_at = self._clock()
        self._resyncs_with_news = self._resyncs_with_news + 1 if missed else 0

    def not_ready(self) -> str | None:
        """Why a replica that leads does not act, or None. One that does not lead is ready to."""
        if (seconds := self._seconds_unlisted()) is None:
            return None
        error = self._list_error and f": {self._list_error}"
        return f"leads since {seconds:.0f} s, and has not listed all jobs yet{error}"

    def _seconds_unlisted(self) -> float | None:
        """How long this replica has led without having listed all jobs; None where that is not so."""
        if self._leads_since is None or self._resynced_at is not None:
            return None
        return self._clock() - self._leads_since

    def unhealthy(self) -> str | None:
        """Why the process should be started anew, or None. A replica that has not led yet is healthy."""
        if self._longest_running() > STUCK_SECONDS:
            return f"a worker has been at one job for {self._longest_running():.0f} s"
        if self._resynced_at is None:
            return self.not_ready() if (self._seconds_unlisted() or 0) > FIRST_LIST_SECONDS else None
        silent = self._clock() - self._resynced_at
        if silent > _MISSED_RESYNCS * self._resync_seconds:
            return f"no resync has passed for {silent:.0f} s"
        if self._resyncs_with_news >= _MISSED_RESYNCS:
            return f"{self._resyncs_with_news} resyncs in a row found changes that no watch had brought"
        return None
