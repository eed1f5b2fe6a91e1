"""A pod may report now and then, and a few times at once; one pod's haste is not another's."""

from __future__ import annotations

from finetune_operator.progress.limiter import RateLimiter


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    clock = Clock()
    limiter = RateLimiter(per_second=1, burst=3, clock=clock)
    assert [limiter.allows("pod") for _ in range(5)] == [True, True, True, False, False]
    clock.seconds = 1
    assert [limiter.allows("pod") for _ in range(2)] == [True, False]


def test_the_long_run_rate_is_kept() -> None:
    clock = Clock()
    limiter = RateLimiter(per_second=0.5, burst=2, clock=clock)
    allowed = 0
    for tenth in range(10_000):
        clock.seconds = tenth / 10
        allowed += limiter.allows("pod")
    assert 500 <= allowed <= 502


def test_a_pause_earns_no_more_than_a_burst() -> None:
    clock = Clock()
    limiter = RateLimiter(per_second=1, burst=3, clock=clock)
    limiter.allows("pod")
    clock.seconds = 86_400
    assert [limiter.allows("pod") for _ in range(4)] == [True, True, True, False]


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    limiter = RateLimiter(per_second=1, burst=1, clock=clock)
    assert limiter.allows("pod")
    for tenth in range(1, 10):
        clock.seconds = tenth / 10
        assert not limiter.allows("pod")
    clock.seconds = 1.01
    assert limiter.allows("pod")


def test_one_pod_does_not_slow_another() -> None:
    limiter = RateLimiter(per_second=1, burst=1, clock=Clock())
    assert limiter.allows("a")
    assert not limiter.allows("a")
    assert limiter.allows("b")


def test_pods_that_come_and_go_take_no_memory_for_ever() -> None:
    clock = Clock()
    limiter = RateLimiter(per_second=1, burst=10, clock=clock)
    for number in range(120_000):
        clock.seconds = number / 1000
        limiter.allows(f"pod-{number}")
        assert len(limiter._buckets) <= 50_000


def test_where_too_many_are_in_use_who_came_last_is_remembered() -> None:
    limiter = RateLimiter(per_second=1, burst=1, clock=Clock())
    for number in range(120_000):
        assert limiter.allows(f"pod-{number}")
        assert len(limiter._buckets) <= 50_000
        if number % 10_000 == 0:
            assert not limiter.allows("pod-0")  # it is in use all the time
    assert not limiter.allows("pod-119999")


def test_what_is_given_back_may_be_used_again_and_no_more_than_a_burst() -> None:
    limiter = RateLimiter(per_second=1, burst=2, clock=Clock())
    limiter.give_back("pod")
    assert [limiter.allows("pod") for _ in range(3)] == [True, True, False]
    limiter.give_back("pod")
    assert [limiter.allows("pod") for _ in range(2)] == [True, False]
