"""What watches bring is noted and queued; what is old, repeated or of a stranger queues nothing."""

from __future__ import annotations

import asyncio

from finetune_api.exit_codes import ExitCode
from finetune_operator.engine.feed import Feed
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.plan.plan import make_plan
from plan_builders import (
    CHILD_UID,
    JOB_UID,
    KEY,
    SETTINGS,
    at,
    make_child,
    make_job,
    make_pod,
    make_word,
    message_of,
)
from virtual_time import VirtualClock, run_virtually


def make_feed() -> Feed:
    return Feed(Store(), WorkQueue[Key]())


def drained(feed: Feed) -> list[Key]:
    """The queued keys."""

    async def drain() -> list[Key]:
        return [(await feed.queue.get())[0] for _ in range(len(feed.queue))]

    return asyncio.run(drain())


def test_everything_new_about_a_job_queues_it() -> None:
    feed = make_feed()
    feed.fine_tune_job("ADDED", make_job().obj())
    assert drained(feed) == [KEY]
    feed.queue.done(KEY)
    feed.job(None, make_child().obj())  # the first list has no type
    assert drained(feed) == [KEY]
    feed.queue.done(KEY)
    feed.pod("MODIFIED", make_pod().obj())
    assert drained(feed) == [KEY]


def test_a_repetition_queues_nothing() -> None:
    feed = make_feed()
    for _ in range(2):
        feed.fine_tune_job("ADDED", make_job().obj())
        feed.job("ADDED", make_child().obj())
        feed.pod("ADDED", make_pod().obj())
    drained(feed)
    feed.queue.done(KEY)
    feed.fine_tune_job("MODIFIED", make_job().obj())
    feed.job("MODIFIED", make_child().obj())
    feed.pod("MODIFIED", make_pod().obj())
    assert len(feed.queue) == 0


def test_the_end_of_a_child_queues_its_job() -> None:
    feed = make_feed()
    for see, body in ((feed.job, make_child().obj()), (feed.pod, make_pod().obj())):
        see("ADDED", body)
        drained(feed)
        feed.queue.done(KEY)
        see("DELETED", body)
        assert drained(feed) == [KEY]
        feed.queue.done(KEY)
    assert (feed.store.child_uids(), feed.store.pod_uids()) == ({}, {})


def test_a_job_that_is_gone_is_forgotten_with_its_delays() -> None:
    async def main(clock: VirtualClock) -> int:
        feed = Feed(Store(), WorkQueue[Key](clock))
        feed.fine_tune_job("ADDED", make_job().obj())
        await feed.queue.get()
        feed.queue.done(KEY)
        feed.queue.add_after(KEY, 5)
        feed.fine_tune_job("DELETED", make_job().obj())
        await asyncio.sleep(10)
        try:
            await asyncio.wait_for(feed.queue.get(), 10)
        except TimeoutError:
            return len(feed.store)
        return -1

    assert run_virtually(main) == 0


def test_a_late_farewell_takes_no_delay_from_a_successor() -> None:
    async def main(clock: VirtualClock) -> Key:
        feed = Feed(Store(), WorkQueue[Key](clock))
        feed.fine_tune_job("ADDED", make_job().metadata(uid="successor").obj())
        await feed.queue.get()
        feed.queue.done(KEY)
        feed.queue.add_after(KEY, 5)
        feed.fine_tune_job("DELETED", make_job().metadata(uid=JOB_UID).obj())
        return (await asyncio.wait_for(feed.queue.get(), 10))[0]

    assert run_virtually(main) == KEY


def test_a_pod_of_a_stranger_queues_no_job_of_ours() -> None:
    feed = make_feed()
    feed.pod("ADDED", make_pod().metadata(labels={}).obj())
    assert len(feed.queue) == 0


def test_that_a_job_has_ended_may_be_told_by_its_farewell_alone() -> None:
    """As where something in the cluster gives every Job a time to live."""
    feed = make_feed()
    feed.fine_tune_job("ADDED", make_job().obj())
    feed.job("ADDED", make_child().obj())
    done = make_pod().succeeded(make_word(ExitCode.COMPLETE, "trained 9 of 9 steps"))
    feed.pod("MODIFIED", done.obj())
    feed.job("DELETED", make_child().complete().metadata(resourceVersion="90").obj())
    feed.pod("DELETED", done.metadata(resourceVersion="91").obj())
    snapshot = feed.store.snapshot(KEY)
    assert snapshot is not None
    plan = make_plan(snapshot, SETTINGS, at(1))
    assert plan.create == ()
    assert message_of(plan.status, "Complete") == "trained 9 of 9 steps"
    feed.fine_tune_job("MODIFIED", make_job().status(plan.status).metadata(resourceVersion="92").obj())
    assert (feed.store.child_uids(), feed.store.pod_uids()) == ({}, {})


def test_a_farewell_to_an_earlier_job_leaves_the_present_one() -> None:
    feed = make_feed()
    feed.job("ADDED", make_child().obj())
    feed.job("DELETED", make_child().metadata(uid="earlier").obj())
    assert feed.store.child_uids() == {KEY: CHILD_UID}
