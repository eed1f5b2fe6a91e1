"""A job's first report is written at once, and a thousand jobs' are spread."""

from __future__ import annotations

import random
from collections import Counter

from finetune_operator.progress.limiter import RateLimiter
from finetune_operator.progress.pace import FIRST_PER_SECOND, Pace

INTERVAL = 15.0


def test_the_first_report_is_written_at_once_and_the_others_at_the_interval() -> None:
    pace = Pace(lambda: INTERVAL)
    assert [pace.delay(is_first) for is_first in (True, False, False)] == [0.0, INTERVAL, INTERVAL]


def test_a_thousand_jobs_that_start_together_are_spread_over_the_interval() -> None:
    now = 0.0
    limiter = RateLimiter(FIRST_PER_SECOND, FIRST_PER_SECOND, clock=lambda: now)
    pace = Pace(lambda: INTERVAL, limiter, random.Random(7).random)
    written: list[float] = []
    for number in range(1000):
        now = number / 500  # all have reported after two seconds
        written.append(now + pace.delay(is_first=True))
    a_second = Counter(int(at) for at in written)
    assert max(a_second.values()) < 130  # evenly it were 1000 / 15, and the first second has those at once
    assert max(written) < 2 + INTERVAL


def test_later_comers_are_at_once_again() -> None:
    now = 0.0
    pace = Pace(lambda: INTERVAL, RateLimiter(FIRST_PER_SECOND, FIRST_PER_SECOND, clock=lambda: now), lambda: 0.5)
    delays = [pace.delay(is_first=True) for _ in range(FIRST_PER_SECOND + 1)]
    assert delays == [0.0] * FIRST_PER_SECOND + [INTERVAL / 2]
    now = 1.0
    assert pace.delay(is_first=True) == 0.0
