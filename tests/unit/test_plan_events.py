"""People are told of transitions they wait for, once."""

from __future__ import annotations

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_operator.plan.plan import Plan
from plan_builders import (
    NOW,
    JobBuilder,
    at,
    make_child,
    make_job,
    make_pod,
    make_progress,
    make_word,
    plan_of,
    reasons_of,
)


def after(plan: Plan, job: JobBuilder | None = None) -> JobBuilder:
    """The job with what was planned written."""
    return (job or make_job()).status(plan.status)


def test_a_healthy_job_tells_two_things() -> None:
    child, told = make_child(), []
    pending = plan_of(make_job())
    starting = plan_of(after(pending), child, make_pod())
    running = plan_of(after(pending), child, make_pod().running())
    complete = plan_of(after(running), child.complete(NOW), make_pod().succeeded())
    for plan in (pending, starting, running, complete):
        told += [(event.type, event.reason) for event in plan.events]
    assert told == [("Normal", "Running"), ("Normal", "Complete")]


def test_waiting_is_no_event_whatever_the_cause() -> None:
    pending = plan_of(make_job())
    for pod in (make_pod().unschedulable("no node"), make_pod().waiting("ErrImagePull")):
        plan = plan_of(after(pending), make_child(), pod)
        assert plan.status is not None
        assert plan.events == ()


def test_progress_is_no_event() -> None:
    running = plan_of(make_job(), make_child(), make_pod().running())
    plan = plan_of(after(running), make_child(), make_pod().running(), progress=make_progress(5), now=at(60))
    assert plan.status is not None
    assert plan.events == ()


def test_a_failure_is_a_warning_by_its_cause_with_its_words() -> None:
    running = plan_of(make_job(), make_child(), make_pod().running())
    word = make_word(ExitCode.DATA_INVALID, "no rows", "look at spec.data.train")
    plan = plan_of(after(running), make_child().fails(NOW), make_pod().failed(11, word=word))
    [event] = plan.events
    assert (event.type, event.reason, event.note) == ("Warning", "DataInvalid", "no rows; look at spec.data.train")


def test_suspending_and_resuming_are_told() -> None:
    running = plan_of(make_job(), make_child(), make_pod().running())
    job = make_job().suspended()
    suspended = plan_of(after(running, job), make_child(), make_pod().running())
    assert reasons_of(suspended) == ["Suspended"]
    resumed = plan_of(after(suspended), make_child().suspended())
    assert reasons_of(resumed) == ["Resumed"]
    running = plan_of(after(resumed), make_child(), make_pod(1).running())
    assert reasons_of(running) == ["Running"]


def test_a_job_that_is_created_suspended_was_never_stopped() -> None:
    suspended = plan_of(make_job().suspended())
    assert suspended.events == ()
    assert reasons_of(plan_of(after(suspended), make_child())) == ["Resumed"]


def test_a_suspended_job_that_ends_was_not_resumed() -> None:
    suspended = plan_of(make_job().suspended(), make_child(), make_pod().running())
    plan = plan_of(after(suspended, make_job().suspended()), make_child().complete(NOW), make_pod().succeeded())
    assert reasons_of(plan) == ["Complete"]


def test_a_job_that_is_refused_for_its_spec_is_told_so() -> None:
    assert reasons_of(plan_of(make_job().spec(task="Poetry"))) == ["SpecInvalid"]


def test_a_retry_that_runs_again_is_told() -> None:
    running = plan_of(make_job(), make_child(), make_pod().running())
    lost = plan_of(after(running), make_child(), make_pod().failed(41))
    assert lost.events == ()
    again = plan_of(after(lost), make_child(), make_pod().failed(41), make_pod(1).running())
    assert reasons_of(again) == ["Running"]


@pytest.mark.parametrize("seconds", [0, 3600])
def test_nothing_is_told_twice(seconds: float) -> None:
    job, child, pod = make_job(), make_child().complete(NOW), make_pod().succeeded()
    plan = plan_of(job, child, pod)
    assert reasons_of(plan) == ["Complete"]
    again = plan_of(after(plan), child, pod, now=at(seconds))
    assert (again.events, again.status) == ((), None)
