"""A token bucket for each key, such as a pod or an address."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

_SIZE_LIMIT = 50_000


class RateLimiter:
    """Allows `burst` requests at once and `per_second` in the long run, for each key.

    Where more keys are in use than it may keep, those that were used last are kept.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """Tokens, and when there were so many; in the order of their last use."""

    def allows(self, key: str) -> bool:
        """Whether a request may pass now; one that may is counted."""
        tokens = self._tokens(key)
        self._put(key, tokens - 1 if tokens >= 1 else tokens)
        return tokens >= 1

    def has_left(self, key: str) -> bool:
        """Whether a request would pass now; nothing is counted."""
        return self._tokens(key) >= 1

    def give_back(self, key: str) -> None:
        """A request that was counted turned out to be none that should be."""
        self._put(key, min(self._burst, self._tokens(key) + 1))

    def _tokens(self, key: str) -> float:
        now = self._clock()
        tokens, at = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - at) * self._per_second)

    def _put(self, key: str, tokens: float) -> None:
        self._buckets.pop(key, None)
        self._buckets[key] = (tokens, self._clock())
        if len(self._buckets) > _SIZE_LIMIT:
            self._buckets = dict(islice(self._buckets.items(), _SIZE_LIMIT // 2, None))
