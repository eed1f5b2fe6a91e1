"""Every second of a job is goodput, or badput of one cause, and the sum is what elapsed."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.status import CheckpointStatus, Progress
from finetune_operator.metrics.goodput import Cause, Share, shares
from finetune_operator.plan.plan import make_plan
from finetune_operator.plan.stored import read_status
from plan_builders import (
    SETTINGS,
    ChildBuilder,
    JobBuilder,
    PodBuilder,
    at,
    make_child,
    make_job,
    make_pod,
    make_progress,
    make_word,
    snapshot,
)


class Life:
    """A job whose written statuses are counted as the operator counts them."""

    def __init__(self) -> None:
        self.job: JobBuilder = make_job()
        self.seconds: Counter[Cause | None] = Counter()

    def seen(
        self, when: float, child: ChildBuilder | None, *pods: PodBuilder, progress: Progress | None = None
    ) -> list[Share]:
        """Something is observed at a moment; what was counted because of it."""
        observed = snapshot(self.job, child, *pods, progress=progress)
        plan = make_plan(observed, SETTINGS, at(when))
        if plan.status is None:
            return []
        found = shares(observed, read_status(observed.job.status), read_status(plan.status))
        for cause, seconds in found:
            self.seconds[cause] += seconds
        self.job.status(plan.status)
        return found


def saved(step: int, when: float) -> Progress:
    return make_progress(step, last_checkpoint=CheckpointStatus(step=step, time=at(when)))


def running(number: int = 0) -> PodBuilder:
    return make_pod(number).scheduled(at(20)).running(at(30))


def started() -> Life:
    """It runs since second 40: 20 s until it had a node, 20 s until it ran."""
    life = Life()
    life.seen(0, None)
    life.seen(40, make_child(), running())
    return life


def test_the_way_to_running_is_scheduling_and_then_starting() -> None:
    life = started()
    assert life.seconds == {Cause.SCHEDULING: 20, Cause.STARTING: 20}


def test_waiting_for_a_queue_is_badput_of_its_own() -> None:
    life = Life()
    life.job.queue()
    life.seen(0, None)
    life.seen(1, make_child(life.job))
    life.seen(100, make_child(life.job).queued(admitted=True), make_pod())
    assert life.seconds == {Cause.SCHEDULING: 1, Cause.QUEUED: 99}


def test_what_never_got_a_node_was_waiting_for_one() -> None:
    life = Life()
    life.seen(0, None)
    life.seen(5, make_child(), make_pod().unschedulable("no node"))
    life.job.suspended()
    life.seen(90, make_child().suspended(), make_pod().unschedulable("no node"))
    assert life.seconds == {Cause.SCHEDULING: 90}


def test_a_complete_run_is_goodput_to_the_moment_of_its_end() -> None:
    life = started()
    life.seen(145, make_child().complete(at(140)), running().succeeded())
    assert life.seconds[None] == 100


def test_a_failed_run_is_badput() -> None:
    life = started()
    life.seen(140, make_child().fails(at(140)), running().failed(15), progress=saved(5, 130))
    assert life.seconds[Cause.FAILED] == 100
    assert life.seconds[None] == 0


@pytest.mark.parametrize(
    ("checkpoint", "kept"),
    [(None, 0), (at(100), 60), (at(20), 0), (at(999), 100)],
    ids=["none", "in this run", "of an earlier run", "by a clock that is ahead"],
)
def test_a_lost_pod_loses_what_came_after_the_last_checkpoint(checkpoint: datetime | None, kept: float) -> None:
    life = started()
    progress = make_progress(5)
    if checkpoint:
        progress = make_progress(5, last_checkpoint=CheckpointStatus(step=5, time=checkpoint))
    life.seen(140, make_child(), running().failed(41), progress=progress)
    assert (life.seconds[None], life.seconds[Cause.LOST_WORK]) == (kept, 100 - kept)


def test_the_checkpoint_of_the_last_word_counts_though_it_was_never_reported() -> None:
    life = started()
    word = make_word(ExitCode.STOPPED, "stopped", progress=saved(9, 138))
    life.seen(140, make_child(), running().failed(143, word=word), progress=saved(5, 100))
    assert (life.seconds[None], life.seconds[Cause.LOST_WORK]) == (98, 2)


def test_until_it_runs_again_it_recovers() -> None:
    life = started()
    life.seen(140, make_child(), running().failed(41))
    life.seen(200, make_child(), running().failed(41), running(1))
    assert life.seconds[Cause.RECOVERY] == 60


def test_a_suspended_run_was_kept_and_its_rest_is_no_ones_fault() -> None:
    life = started()
    life.job.suspended()
    life.seen(140, make_child(), running())
    life.job.suspended(False)
    life.seen(240, make_child().suspended())
    assert (life.seconds[None], life.seconds[Cause.SUSPENDED]) == (100, 100)


def test_nothing_is_counted_while_a_phase_goes_on() -> None:
    life = started()
    before = dict(life.seconds)
    for second in range(60, 200, 20):
        assert life.seen(second, make_child(), running(), progress=make_progress(second // 2)) == []
    assert life.seconds == before


def test_nothing_is_counted_after_the_end() -> None:
    life = started()
    life.seen(140, make_child().complete(at(140)), running().succeeded())
    before = dict(life.seconds)
    life.job.metadata(generation=2)
    assert life.seen(999, make_child().complete(at(140)), running().succeeded()) == []
    assert life.seconds == before


def test_the_sum_over_a_long_life_is_what_elapsed() -> None:
    life = Life()
    life.seen(0, None)
    life.seen(40, make_child(), running())
    life.seen(300, make_child(), running().failed(41), progress=saved(50, 250))
    life.seen(360, make_child(), running().failed(41), running(1))
    life.job.suspended()
    life.seen(500, make_child(), running().failed(41), running(1))
    life.job.suspended(False)
    life.seen(900, make_child().suspended(), running().failed(41))
    life.seen(960, make_child(), running().failed(41), running(2))
    life.seen(2005, make_child().complete(at(2000)), running().failed(41), running(2).succeeded())
    assert sum(life.seconds.values()) == timedelta(seconds=2000).total_seconds()
    assert life.seconds == {
        Cause.SCHEDULING: 20,
        Cause.STARTING: 20,
        Cause.LOST_WORK: 50,
        Cause.RECOVERY: 120,
        Cause.SUSPENDED: 400,
        None: 210 + 140 + 1040,
    }
