"""A token bucket for each pod."""

from __future__ import annotations

import time
from collections.abc import Callable

_SIZE_LIMIT = 50_000


class RateLimiter:
    """Allows `burst` requests at once and `per_second` in the long run, for each key."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._size_limit = _SIZE_LIMIT

    def allows(self, key: str) -> bool:
        """Whether a request may pass now; one that may is counted."""
        now = self._clock()
        tokens, at = self._buckets.get(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._per_second)
        if len(self._buckets) >= self._size_limit:
            self._forget_full(now)
        self._buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1

    def _forget_full(self, now: float) -> None:
        full_after = self._burst / self._per_second
        self._buckets = {key: entry for key, entry in self._buckets.items() if now - entry[1] < full_after}
        # Where so many are in use at once, the next look at all of them comes later: it must not slow every request.
        self._size_limit = max(_SIZE_LIMIT, 2 * len(self._buckets))
