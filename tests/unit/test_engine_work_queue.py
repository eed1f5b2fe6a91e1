"""The queue: a key at most once queued and once at work, nothing lost, delays and backoff by a clock that is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.engine.work_queue import FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, WorkQueue
from virtual_time import VirtualClock, run_virtually

Queue = WorkQueue[str]


def run(test: Callable[[Queue, VirtualClock], Coroutine[Any, Any, None]], jitter: float = 1.0) -> None:
    """Run a test with a queue, in virtual time."""

    async def main(clock: VirtualClock) -> None:
        await test(WorkQueue(clock, lambda: jitter), clock)

    run_virtually(main)


async def next_key(queue: Queue, within: float = 0.5) -> str | None:
    """The next key, or None when none comes in time."""
    try:
        return (await asyncio.wait_for(queue.get(), within))[0]
    except TimeoutError:
        return None


@pytest.mark.security(24)
def test_keys_come_in_the_order_they_were_added() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        for key in "abc":
            queue.add(key)
        assert [await next_key(queue) for _ in "abcd"] == ["a", "b", "c", None]

    run(test)


def test_a_key_is_queued_once() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        for key in ("a", "a", "b", "a"):
            queue.add(key)
        assert len(queue) == 2
        assert [await next_key(queue) for _ in range(3)] == ["a", "b", None]

    run(test)


def test_a_key_at_work_is_not_given_out_and_comes_again_when_it_was_added_meanwhile() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add("a")
        assert await next_key(queue) == "a"
        queue.add("a")
        queue.add("a")
        assert await next_key(queue) is None
        queue.done("a")
        assert await next_key(queue) == "a"
        queue.done("a")
        assert await next_key(queue) is None

    run(test)


def test_a_worker_that_waits_is_woken() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        asyncio.get_running_loop().call_later(10, queue.add, "a")
        assert await next_key(queue, 11) == "a"
        assert clock() == pytest.approx(10, abs=0.1)

    run(test)


def test_many_workers_never_share_a_key() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        at_work: list[str] = []
        done = 0

        async def work() -> None:
            nonlocal done
            while True:
                key, _ = await queue.get()
                assert key not in at_work
                at_work.append(key)
                await asyncio.sleep(1)
                at_work.remove(key)
                queue.done(key)
                done += 1

        workers = [asyncio.create_task(work()) for _ in range(4)]
        for _ in range(30):
            for key in "abc":
                queue.add(key)
            await asyncio.sleep(0.3)
        await asyncio.sleep(5)
        assert not any(worker.done() for worker in workers)
        assert 25 <= done <= 33
        for worker in workers:
            worker.cancel()

    run(test)


@pytest.mark.parametrize("turns", range(5))
def test_a_worker_that_is_cancelled_as_a_key_comes_ends(turns: int) -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        async def work() -> None:
            while True:
                key, _ = await queue.get()
                queue.done(key)

        queue.add_after("later", 3600)
        worker = asyncio.create_task(work())
        await asyncio.sleep(1)
        queue.add("a")
        for _ in range(turns):  # what the worker waits for has happened, and it may not have been told yet
            await asyncio.sleep(0)
        worker.cancel()
        await asyncio.wait([worker], timeout=10)
        assert worker.cancelled()

    run(test)


def test_the_wait_of_a_key_is_told() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add("a")
        await asyncio.sleep(7)
        assert (await queue.get())[1] == pytest.approx(7, abs=0.1)

    run(test)


def test_a_delayed_key_comes_when_it_is_due() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add_after("a", 60)
        assert len(queue) == 0
        assert await next_key(queue, 59) is None
        assert await next_key(queue, 2) == "a"

    run(test)


def test_the_earliest_of_several_delays_counts_and_only_once() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        for seconds in (60, 10, 30):
            queue.add_after("a", seconds)
        assert await next_key(queue, 11) == "a"
        queue.done("a")
        assert await next_key(queue, 600) is None

    run(test)


def test_a_later_delay_is_no_replacement() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add_after("a", 10)
        queue.add_after("a", 600)
        assert await next_key(queue, 11) == "a"

    run(test)


def test_a_key_that_is_added_at_once_needs_its_delay_no_more() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add_after("a", 10)
        queue.add("a")
        assert await next_key(queue) == "a"
        queue.done("a")
        assert await next_key(queue, 600) is None

    run(test)


def test_a_delay_that_ends_during_the_work_brings_the_key_again() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add("a")
        assert await next_key(queue) == "a"
        queue.add_after("a", 10)
        queue.add("b")
        await asyncio.sleep(11)
        assert await next_key(queue) == "b"
        queue.done("a")
        assert await next_key(queue) == "a"

    run(test)


def test_each_failure_doubles_the_wait_up_to_a_limit_and_success_forgets_them() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        waits = []
        for _ in range(12):
            queue.add("a")
            assert await next_key(queue) == "a"
            waits.append(queue.failed("a"))
        assert waits[:4] == [1, 2, 4, 8]
        assert waits[-1] == MAX_BACKOFF_SECONDS
        queue.add("a")
        await next_key(queue)
        queue.done("a")
        queue.add("a")
        await next_key(queue)
        assert queue.failed("a") == FIRST_BACKOFF_SECONDS

    run(test)


def test_a_failed_key_comes_again_after_its_wait() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add("a")
        await next_key(queue)
        queue.failed("a")
        assert await next_key(queue, 0.9) is None
        assert await next_key(queue, 0.2) == "a"

    run(test)


def test_a_failed_key_with_news_comes_at_once() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add("a")
        await next_key(queue)
        queue.add("a")
        queue.failed("a")
        assert await next_key(queue, 0.1) == "a"

    run(test)


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_jitter_spreads_the_waits(jitter: float, seconds: float) -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        queue.add("a")
        await next_key(queue)
        assert queue.failed("a") == seconds

    run(test, jitter)


@pytest.mark.security(24)
def test_the_failures_of_one_key_do_not_slow_another() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        for _ in range(5):
            queue.add("a")
            await next_key(queue)
            queue.failed("a")
        queue.add("b")
        await next_key(queue)
        assert queue.failed("b") == FIRST_BACKOFF_SECONDS

    run(test)


def test_a_forgotten_key_has_no_delay_and_no_failures() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        for _ in range(3):
            queue.add("a")
            await next_key(queue)
            queue.failed("a")
        queue.forget("a")
        assert await next_key(queue, 600) is None
        queue.add("a")
        await next_key(queue)
        assert queue.failed("a") == FIRST_BACKOFF_SECONDS

    run(test)


def test_the_longest_work_is_told_for_health() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        assert queue.longest_running_seconds() == 0
        queue.add("a")
        queue.add("b")
        await next_key(queue)
        await asyncio.sleep(30)
        await next_key(queue)
        await asyncio.sleep(5)
        assert queue.longest_running_seconds() == pytest.approx(35, abs=0.1)
        queue.done("a")
        assert queue.longest_running_seconds() == pytest.approx(5, abs=0.1)

    run(test)


def test_delays_that_are_superseded_for_ever_take_no_memory_for_ever() -> None:
    async def test(queue: Queue, clock: VirtualClock) -> None:
        for number in range(20_000):
            queue.add_after("a", 10_000 - number / 10)
        assert len(queue._delayed) < 3_000

    run(test)


@given(st.lists(st.sampled_from(["add", "add later", "get", "done", "failed", "wait"]), max_size=40))
def test_whatever_is_done_no_change_is_missed(steps: list[str]) -> None:
    """After its last change, a key is given out at least once."""

    async def test(queue: Queue, clock: VirtualClock) -> None:
        is_dirty = is_working = False
        for step in steps:
            if step == "add":
                queue.add("a")
                is_dirty = True
            elif step == "add later":
                queue.add_after("a", 3)
                is_dirty = True
            elif step == "get" and not is_working:
                is_working = await next_key(queue, 0.01) is not None
                is_dirty = is_dirty and not is_working
            elif step in ("done", "failed") and is_working:
                queue.done("a") if step == "done" else queue.failed("a")
                is_working, is_dirty = False, is_dirty or step == "failed"
            elif step == "wait":
                await asyncio.sleep(1)
        if is_working:
            queue.done("a")
        if is_dirty:
            assert await next_key(queue, MAX_BACKOFF_SECONDS + 1) == "a"

    run(test)
