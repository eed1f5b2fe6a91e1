"""Who has renewed the lease in time may write, by a clock that goes on while the process does not."""

from __future__ import annotations

import pytest

from finetune_operator.host.leader import Leadership


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leadership(clock: Clock) -> Leadership:
    return Leadership(15, clock)


def test_nobody_leads_from_the_start(leadership: Leadership) -> None:
    assert not leadership.holds()


def test_a_renewal_is_good_for_two_thirds_of_the_lease(leadership: Leadership, clock: Clock) -> None:
    leadership.renewed(leadership.now())
    clock.seconds += 9.9
    assert leadership.holds()
    clock.seconds += 0.1
    assert not leadership.holds()


def test_what_counts_is_when_the_request_was_sent_and_not_its_answer(leadership: Leadership, clock: Clock) -> None:
    sent = leadership.now()
    clock.seconds += 8
    leadership.renewed(sent)
    clock.seconds += 2
    assert not leadership.holds()


def test_a_process_that_was_stopped_and_wakes_up_may_not_write(leadership: Leadership, clock: Clock) -> None:
    leadership.renewed(leadership.now())
    clock.seconds += 3600
    assert not leadership.holds()


def test_it_stops_before_another_can_start(leadership: Leadership, clock: Clock) -> None:
    leadership.renewed(leadership.now())
    clock.seconds += leadership.lease_seconds  # from here on the lease is anyone's
    assert not leadership.holds()
    clock.seconds -= leadership.lease_seconds / 3
    assert not leadership.holds()


def test_who_gives_up_may_not_write_though_the_lease_is_good(leadership: Leadership) -> None:
    leadership.renewed(leadership.now())
    leadership.given_up()
    assert not leadership.holds()


def test_renewing_in_time_goes_on_leading(leadership: Leadership, clock: Clock) -> None:
    for _ in range(100):
        leadership.renewed(leadership.now())
        clock.seconds += 2
        assert leadership.holds()
