"""When a report is to reach its job's status: the first at once, as somebody may wait for it, then now and then."""

from __future__ import annotations

import random
from collections.abc import Callable

from finetune_operator.progress.limiter import RateLimiter

FIRST_PER_SECOND = 20
"""So many first reports reach their status at once; where more jobs start together, the others are spread."""


class Pace:
    """Spreads the writes of jobs that start together, and so keeps them spread from then on."""

    def __init__(
        self,
        interval_seconds: Callable[[], float],
        limiter: RateLimiter | None = None,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._interval_seconds = interval_seconds
        self._limiter = limiter or RateLimiter(FIRST_PER_SECOND, FIRST_PER_SECOND)
        self._share = share

    def delay(self, is_first: bool) -> float:
        """Seconds until the report is to be written, if nothing else writes the status before."""
        if not is_first:
            return self._interval_seconds()
        return 0.0 if self._limiter.allows("first") else self._share() * self._interval_seconds()
