"""What should have happened to a job's pods by now: nobody sends an event when nothing happens, so the clock tells."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_operator.plan.conditions import MESSAGE_LIMIT
from finetune_operator.plan.plan import Plan, make_plan
from plan_builders import (
    DELETED,
    NOW,
    SETTINGS,
    ChildBuilder,
    JobBuilder,
    PodBuilder,
    at,
    conditions_of,
    make_child,
    make_job,
    make_pod,
    make_word,
    message_of,
    plan_of,
    snapshot,
    text_of,
)

WAITING = ("PodsPending", "waiting for pods to run")
SCHEDULER = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def waits(plan: Plan) -> tuple[str, str]:
    """Reason and message of a job whose pods do not run."""
    assert plan.status is not None
    assert plan.status["phase"] == "Pending"
    return conditions_of(plan.status)["Reconciling"][1], message_of(plan.status, "Reconciling")


def runs(plan: Plan) -> tuple[str, str]:
    """Reason and message of a job that runs."""
    assert plan.status is not None
    assert plan.status["phase"] == "Running"
    return conditions_of(plan.status)["Running"][1], message_of(plan.status, "Running")


def after(plan: Plan, job: JobBuilder | None = None) -> JobBuilder:
    """The job with the status that a plan wrote."""
    return (job or make_job()).status(plan.status)


def waits_since(plan: Plan) -> tuple[tuple[str, str], str]:
    """Besides them since when pods are missing."""
    assert plan.status is not None
    return waits(plan), plan.status["podsMissingSince"]


# ---- pods that are not made ----


def lacking(child: ChildBuilder, *pods: PodBuilder) -> JobBuilder:
    """A job whose first pods are missing ten seconds after its Job was made."""
    return after(plan_of(after(plan_of(make_job())), child, *pods, now=at(10)))


def test_a_job_without_any_pod_is_refused_its_pods_once_they_should_be_there() -> None:
    begun, child = after(plan_of(make_job())), make_child().started(NOW)
    first, note = (plan_of(begun, child, now=at(seconds)) for seconds in (9, 10))
    assert (first.status, first.requeue_after) == (None, timedelta(seconds=1))
    assert waits_since(note) == (WAITING, text_of(at(10)))
    assert note.requeue_after == timedelta(seconds=10)
    early, late = (plan_of(after(note), child, now=at(seconds)) for seconds in (19, 20))
    assert (early.status, early.requeue_after) == (None, timedelta(seconds=1))
    reason, message = waits(late)
    assert reason == "PodsRefused"
    assert message.startswith("0 of 1 pods could be made; `kubectl --namespace=team-a describe job router` says why")
    assert late.requeue_after is None
    later = plan_of(after(late), child, now=at(86_400))
    assert (later.status, later.requeue_after) == (None, None)


def test_of_several_nodes_one_that_gets_no_pod_is_enough() -> None:
    for first in (make_pod().running(), make_pod().scheduled(), make_pod().unschedulable(SCHEDULER)):
        child = make_child().nodes(2).started(NOW, active=1)
        reason, message = waits(plan_of(lacking(child, first), child, first, now=at(20)))
        assert reason == "PodsRefused"
        assert message.startswith("1 of 2 pods could be made; ")


@pytest.mark.parametrize(
    ("child", "pods"),
    [
        (make_child(), ()),
        (make_child().suspended().started(NOW), ()),
        (make_child().started(NOW, active=1), ()),
        (make_child().started(NOW), (make_pod(),)),
        (make_child().started(NOW), (make_pod().running().metadata(**DELETED),)),
        (make_child().started(NOW).metadata(**DELETED), ()),
    ],
    ids=["not begun", "suspended", "pods not seen yet", "there", "to be replaced", "to be deleted"],
)
def test_a_job_that_has_its_pods_or_is_to_have_none_lacks_none(
    child: ChildBuilder, pods: tuple[PodBuilder, ...]
) -> None:
    plan = plan_of(after(plan_of(make_job(), child, *pods)), child, *pods, now=at(86_400))
    assert (plan.status, plan.requeue_after) == (None, None)


def failed_at_noon(pod: PodBuilder) -> JobBuilder:
    """A job that ran, and whose pod failed at NOW."""
    child = make_child().started(at(-3600))
    running = plan_of(make_job(), child, make_pod(-3600).running(at(-3500)), now=at(-3500))
    return make_job().status(plan_of(make_job().status(running.status), child, pod).status)


def test_after_a_failure_the_next_pod_may_come_ten_minutes_later() -> None:
    down = make_pod(-3600).failed(41)
    child = make_child().started(at(-3600))
    told = after(plan_of(failed_at_noon(down), child, down, now=at(10)))
    early, late = (plan_of(told, child, down, now=at(10 + 60 * minutes)) for minutes in (10, 11))
    assert early.status is None
    assert early.requeue_after == timedelta(minutes=1)
    assert waits(late)[0] == "PodsRefused"


def test_a_pod_that_is_gone_may_have_failed() -> None:
    child = make_child().started(at(-3600))
    gone = plan_of(failed_at_noon(make_pod(-3600).failed(41)), child, now=at(10))
    assert waits_since(gone) == (WAITING, text_of(at(10)))
    assert plan_of(after(gone), child, now=at(669)).status is None
    assert waits(plan_of(after(gone), child, now=at(670)))[0] == "PodsRefused"


def test_a_pod_that_failed_within_the_first_seconds_is_retried_later_too() -> None:
    child, down = make_child().started(NOW), make_pod().failed(41)
    told = after(plan_of(after(plan_of(make_job(), child)), child, down, now=at(10)))
    assert plan_of(told, child, down, now=at(600)).status is None


def test_an_earlier_try_that_is_gone_counts_though_another_node_has_its_pod() -> None:
    child, first = make_child().nodes(2).started(NOW, active=1), make_pod()
    job = lacking(child, first)
    seen = snapshot(job, child, first)
    assert waits(make_plan(seen, SETTINGS, at(20)))[0] == "PodsRefused"
    assert waits(make_plan(replace(seen, restarts=1), SETTINGS, at(20)))[0] == "PodsPending"


def test_a_job_that_is_made_anew_has_its_first_pods_to_make() -> None:
    ran = failed_at_noon(make_pod(-3600).failed(41))
    gone = after(plan_of(ran, make_child().started(at(-3600)), now=at(10)))
    anew = make_child().started(at(3600))
    assert waits(plan_of(gone, anew, now=at(3601))) == WAITING
    told = after(plan_of(gone, anew, now=at(3610)))
    assert waits(plan_of(told, anew, now=at(3620)))[0] == "PodsRefused"


def test_when_the_pods_are_made_after_all_it_is_a_start() -> None:
    child = make_child().started(NOW)
    refused = plan_of(lacking(child), child, now=at(60))
    assert waits(refused)[0] == "PodsRefused"
    made = plan_of(after(refused), make_child().started(NOW, active=1), make_pod(), now=at(61))
    assert waits(made) == WAITING
    assert made.status is not None
    assert "podsMissingSince" not in made.status


# ---- pods that were there until now: the Job controller makes the next one later ----


def unschedulable_since_noon() -> JobBuilder:
    """A job whose only pod found no node yet."""
    return after(plan_of(make_job(), make_child().started(NOW, active=1), make_pod().unschedulable(SCHEDULER)))


def test_a_pod_that_its_node_rejects_after_long_is_told_of_until_the_next_try() -> None:
    rejected, child = make_pod().rejected("UnexpectedAdmissionError", "no healthy devices"), make_child().started(NOW)
    now_rejected = plan_of(unschedulable_since_noon(), child, rejected, now=at(3600))
    reason, message = waits(now_rejected)
    assert reason == "RejectedByNode"
    assert message.endswith("; waiting for the next try")
    for seconds in (3601, 4259):
        assert plan_of(after(now_rejected), child, rejected, now=at(seconds)).status is None
    assert waits(plan_of(after(now_rejected), child, rejected, now=at(4260)))[0] == "PodsRefused"


def test_every_wait_between_tries_is_its_own() -> None:
    job, pods, moment = make_job(), list[PodBuilder](), 0
    for backoff in (10, 20, 40, 80, 160, 320, 600, 600):
        trying = plan_of(job, make_child().started(NOW, active=1), *pods, make_pod(moment), now=at(moment))
        assert waits(trying) == WAITING
        pods.append(make_pod(moment).rejected("UnexpectedAdmissionError", "no devices"))
        job = after(trying)
        for seconds in (moment + 60, moment + 60 + backoff):
            plan = plan_of(job, make_child().started(NOW), *pods, now=at(seconds))
            job = after(plan) if plan.status else job
            assert job.body["status"]["phase"] == "Pending"
            assert conditions_of(job.body["status"])["Reconciling"][1] == "RejectedByNode"
        moment += 61 + backoff


def test_a_pod_that_came_and_went_unseen_begins_the_wait_anew() -> None:
    child, first = make_child().started(NOW), make_pod().rejected("OutOfcpu")
    job = after(plan_of(unschedulable_since_noon(), child, first, now=at(3600)))
    assert waits(plan_of(job, child, first, make_pod(4100).rejected("OutOfcpu"), now=at(4260)))[0] == "RejectedByNode"


def test_a_pod_that_stops_after_long_is_followed_by_another() -> None:
    child, running = make_child().started(NOW, active=1), make_pod().running().on("node-7")
    stopping, stopped = running.stops_by(at(600)), make_pod().failed(143).on("node-7").stops_by(at(600))
    job = after(plan_of(make_job(), child, make_pod().running()))
    for seconds, pods, reason in (
        (300, [stopping], "PodsPending"),
        (640, [stopping], "PodNotStopping"),
        (7200, [stopped], "Stopped"),
        (7201, [], "PodsPending"),
    ):
        plan = plan_of(job, make_child().started(NOW), *pods, now=at(seconds))
        assert waits(plan)[0] == reason
        job = after(plan)
    assert waits_since(plan) == (WAITING, text_of(at(7200)))
    assert plan_of(job, make_child().started(NOW), now=at(7800)).status is None


@pytest.mark.parametrize("seconds", [3600, 86_400])
def test_a_job_that_fails_for_good_after_a_long_wait_lacks_no_pods(seconds: int) -> None:
    bad = make_pod().failed(ExitCode.DATA_INVALID, word=make_word(ExitCode.DATA_INVALID, "bad data"))
    plan = plan_of(unschedulable_since_noon(), make_child().started(NOW), bad, now=at(seconds))
    assert runs(plan) == ("PodsRunning", "1 of 1 pods run")
    assert plan.requeue_after is None


@pytest.mark.parametrize("first", [make_pod().unschedulable(SCHEDULER), make_pod().scheduled()])
def test_a_waiting_pod_that_is_deleted_may_be_replaced_in_peace(first: PodBuilder) -> None:
    there = make_child().started(NOW, active=1)
    job = after(plan_of(make_job(), there, first))
    deleted = plan_of(job, make_child().started(NOW), now=at(1200))
    assert waits_since(deleted) == (WAITING, text_of(at(1200)))
    assert plan_of(after(deleted), make_child().started(NOW), now=at(1300)).status is None
    replaced = plan_of(after(deleted), there, make_pod(1301), now=at(1301))
    assert waits(replaced) == WAITING


# ---- pods that do not stop ----


def lost(pod: PodBuilder | None = None) -> PodBuilder:
    """A pod that was to be gone at NOW, on a machine that says nothing any more."""
    return (pod or make_pod().running(at(-600))).on("node-7").stops_by(NOW)


def test_a_pod_that_does_not_stop_is_named_with_its_node_and_what_releases_it() -> None:
    early, late = (plan_of(make_job(), make_child(), lost(), now=at(seconds)) for seconds in (29, 30))
    assert waits(early)[0] == "PodsPending"
    assert early.requeue_after == timedelta(seconds=1)
    reason, message = waits(late)
    assert reason == "PodNotStopping"
    assert message.startswith("router-0-0 was told to stop, and its node node-7 does not say that it did; ")
    [commands] = re.findall("`(.+)`", message)
    release, delete = (shlex.split(command) for command in commands.split(" && "))
    assert release[:5] == ["kubectl", "--namespace=team-a", "patch", "pod", "router-0-0"]
    assert json.loads(release[-1].removeprefix("--patch=")) == {"metadata": {"finalizers": None}}
    assert delete == ["kubectl", "--namespace=team-a", "delete", "pod", "router-0-0", "--force"]


def test_a_lost_pod_counts_more_than_a_peer_without_a_node() -> None:
    peer = make_pod(1).node(1).unschedulable(SCHEDULER)
    assert waits(plan_of(make_job(), make_child().nodes(2), lost(), peer, now=at(60)))[0] == "PodNotStopping"


def test_a_suspended_job_tells_of_a_pod_that_does_not_stop_too() -> None:
    job, child = make_job().suspended(), make_child().suspended()
    early, late = (plan_of(job, child, lost(), now=at(seconds)) for seconds in (29, 30))
    assert message_of(early.status, "Suspended") == "pods are saving a checkpoint and stopping"
    assert early.requeue_after == timedelta(seconds=1)
    assert conditions_of(late.status)["Suspended"] == ("True", "SuspendedByUser")
    assert "its node node-7 does not say that it did" in message_of(late.status, "Suspended")


@pytest.mark.parametrize(
    "pod",
    [make_pod().failed(143).on("node-7").stops_by(NOW), make_pod().unschedulable(SCHEDULER).stops_by(NOW)],
    ids=["has stopped", "was nowhere"],
)
def test_a_pod_that_has_stopped_is_not_waited_for(pod: PodBuilder) -> None:
    assert waits(plan_of(make_job(), make_child(), pod, now=at(600)))[0] != "PodNotStopping"


# ---- a Job that does not go ----

HELD = make_child().metadata(**DELETED, finalizers=["foregroundDeletion", "example.com/hold"])


def test_a_deleted_job_that_a_finalizer_keeps_is_told_of_with_what_releases_it() -> None:
    early, late = (plan_of(make_job(), HELD, now=at(seconds)) for seconds in (29, 30))
    assert waits(early) == WAITING
    assert early.requeue_after == timedelta(seconds=1)
    reason, message = waits(late)
    assert reason == "HeldByFinalizer"
    assert message.startswith("the Job router is deleted, and its finalizer example.com/hold keeps it: ")
    [command] = re.findall("`(.+)`", message)
    assert shlex.split(command)[:5] == ["kubectl", "--namespace=team-a", "patch", "job", "router"]
    assert json.loads(shlex.split(command)[-1].removeprefix("--patch=")) == {"metadata": {"finalizers": None}}
    assert late.requeue_after is None
    assert plan_of(after(late), HELD, now=at(600)).status is None


def test_a_job_of_a_queue_that_a_finalizer_keeps_waits_for_no_queue() -> None:
    job, held = make_job().queue("other"), ChildBuilder(HELD.obj()).queued()
    assert waits(plan_of(job, held, now=at(30)))[0] == "HeldByFinalizer"
    suspended = plan_of(job.suspended(), held, now=at(30))
    assert conditions_of(suspended.status)["Suspended"] == ("True", "SuspendedByUser")
    assert "example.com/hold" in message_of(suspended.status, "Suspended")


def test_a_deleted_job_whose_pods_still_stop_is_held_by_them() -> None:
    pod = make_pod().running().stops_by(at(120))
    assert waits(plan_of(make_job(), HELD, pod, now=at(60))) == WAITING
    ours = make_child().metadata(**DELETED, finalizers=["foregroundDeletion"])
    assert waits(plan_of(make_job(), ours, now=at(600))) == WAITING
    kept = make_child().metadata(finalizers=["example.com/hold"])
    assert waits(plan_of(make_job(), kept, now=at(600))) == WAITING


def test_the_longest_names_leave_the_commands_whole() -> None:
    pod = lost().metadata(name="p" * 63).on("n" * 253)
    message = waits(plan_of(make_job(), make_child(), pod, now=at(60)))[1]
    assert len(message.replace("team-a", "n" * 63)) < MESSAGE_LIMIT
    assert message.endswith("--force`")


# ---- pods that a mesh's container keeps ----


def test_a_container_that_outlives_the_trainer_is_named() -> None:
    done = make_pod().succeeded(make_word(ExitCode.COMPLETE, "trained")).held()
    early, late = (plan_of(make_job(), make_child(), done, now=at(seconds)) for seconds in (29, 30))
    assert runs(early) == ("PodsRunning", "1 of 1 pods run")
    assert early.requeue_after == timedelta(seconds=1)
    reason, message = runs(late)
    assert reason == "HeldBySidecar"
    assert message.startswith("the trainer in router-0-0 is done, but the job cannot end while mesh runs in the same ")
    assert 'sidecar.istio.io/inject: "false"' in message


def test_a_trainer_that_failed_is_told_of_though_its_pod_goes_on() -> None:
    word = make_word(ExitCode.DATA_INVALID, "row 7 has no label", "give it one")
    held = make_pod().failed(ExitCode.DATA_INVALID, word=word).held()
    reason, message = runs(plan_of(make_job(), make_child(), held, now=at(60)))
    assert reason == "HeldBySidecar"
    assert "has ended (DataInvalid: row 7 has no label; give it one), but" in message


def test_a_long_word_of_the_trainer_leaves_what_to_do_whole() -> None:
    word = make_word(ExitCode.DATA_INVALID, "x" * 2048)
    held = make_pod().failed(ExitCode.DATA_INVALID, word=word).held()
    message = runs(plan_of(make_job(), make_child(), held, now=at(60)))[1]
    assert message.endswith("in spec.pod.labels)")


def test_a_trainer_that_runs_is_not_held() -> None:
    plan = plan_of(make_job(), make_child(), make_pod().running(), now=at(86_400))
    assert runs(plan) == ("PodsRunning", "1 of 1 pods run")
    assert plan.requeue_after is None


def test_it_is_no_event_that_a_job_is_held() -> None:
    done = make_pod().succeeded().held()
    running = plan_of(make_job(), make_child(), done)
    assert plan_of(make_job().status(running.status), make_child(), done, now=at(60)).events == ()
