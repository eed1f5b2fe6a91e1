"""Health: alive as long as resyncs pass, watches bring what resyncs would find, and no worker is stuck."""

from __future__ import annotations

from finetune_operator.host.health import FIRST_LIST_SECONDS, STUCK_SECONDS, Health


class Bed:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.longest = 0.0
        self.health = Health(60, lambda: self.longest, lambda: self.seconds)

    def resync(self, missed: int = 0) -> None:
        self.seconds += 60
        self.health.resynced(missed)


def test_a_replica_that_has_not_led_yet_is_healthy_for_ever() -> None:
    bed = Bed()
    bed.seconds = 10**6
    assert bed.health.unhealthy() is None
    assert bed.health.not_ready() is None


def test_a_leader_is_ready_when_it_has_read_the_cluster_and_unhealthy_when_it_cannot() -> None:
    bed = Bed()
    bed.health.leads()
    bed.seconds += FIRST_LIST_SECONDS
    assert bed.health.not_ready() == "leads since 120 s, and has not listed all jobs yet"
    assert bed.health.unhealthy() is None
    bed.health.list_failed("the server could not find the requested resource")
    bed.seconds += 1
    reason = "leads since 121 s, and has not listed all jobs yet: the server could not find the requested resource"
    assert (bed.health.not_ready(), bed.health.unhealthy()) == (reason, reason)
    bed.resync()
    assert (bed.health.not_ready(), bed.health.unhealthy()) == (None, None)


def test_resyncs_that_pass_are_health() -> None:
    bed = Bed()
    for _ in range(10):
        bed.resync()
        assert bed.health.unhealthy() is None


def test_three_intervals_without_a_resync_are_not() -> None:
    bed = Bed()
    bed.resync()
    bed.seconds += 180
    assert bed.health.unhealthy() is None
    bed.seconds += 1
    assert bed.health.unhealthy() == "no resync has passed for 181 s"
    bed.resync()
    assert bed.health.unhealthy() is None


def test_a_watch_that_is_dead_shows_by_news_in_three_resyncs_in_a_row() -> None:
    bed = Bed()
    for missed in (1, 2, 0, 1, 1):
        bed.resync(missed)
        assert bed.health.unhealthy() is None
    bed.resync(1)
    assert bed.health.unhealthy() == "3 resyncs in a row found changes that no watch had brought"


def test_a_worker_that_is_stuck_shows_though_everything_else_goes_on() -> None:
    bed = Bed()
    bed.resync()
    bed.longest = STUCK_SECONDS
    assert bed.health.unhealthy() is None
    bed.longest = STUCK_SECONDS + 1
    assert bed.health.unhealthy() == "a worker has been at one job for 301 s"
