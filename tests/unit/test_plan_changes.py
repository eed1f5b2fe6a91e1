"""What a change of the spec does to the Job that is there: changed in place, made anew, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.plan.plan import Plan
from plan_builders import (
    CHILD_UID,
    DELETED,
    NOW,
    PodBuilder,
    at,
    conditions_of,
    make_child,
    make_job,
    make_pod,
    message_of,
    plan_of,
    touches_children,
)

FIRST = {"gpusPerNode": 1, "memory": "16Gi"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("backoffLimit", 9), ("activeDeadlineSeconds", 60), ("activeDeadlineSeconds", None)],
)
@pytest.mark.parametrize("held", [False, True], ids=["", "suspended"])
def test_tries_and_deadline_are_changed_in_place_and_once(field: str, value: int | None, held: bool) -> None:
    job = make_job().spec(activeDeadlineSeconds=3600).suspended(held)
    child = make_child(job).suspended(held)
    assert plan_of(job, child).change_child == {}
    plan = plan_of(job.spec(**{field: value}), child)
    assert (plan.change_child, plan.delete_child) == ({field: value}, None)
    assert plan_of(job, make_child(job).suspended(held)).change_child == {}


def test_tries_are_changed_too_where_kueue_starts_and_stops_the_job() -> None:
    job = make_job().queue()
    child = make_child(job)
    assert plan_of(job.spec(backoffLimit=9), child).change_child == {"backoffLimit": 9}


@pytest.mark.parametrize(
    "change",
    [
        {"resources": {**FIRST, "memory": "32Gi"}},
        {"resources": {"gpusPerNode": 1}},
        {"resources": {**FIRST, "nodes": 2}},
        {"resources": {**FIRST, "gpusPerNode": 0}},
        {"resources": {**FIRST, "gpuResourceName": "amd.com/gpu"}},
        {"resources": {**FIRST, "cpu": "4"}},
        {"resources": {**FIRST, "sharedMemory": "1Gi"}},
        {"resources": {**FIRST, "ephemeralStorage": "200Gi"}},
        {"pod": {"nodeSelector": {"pool": "big"}}},
        {"pod": {"tolerations": [{"key": "spot"}]}},
        {"pod": {"labels": {"team": "research"}}},
        {"pod": {"envFromSecrets": [{"name": "HF_TOKEN", "secret": "hub", "key": "token"}]}},
        {"pod": {"priorityClassName": "high"}},
        {"queueName": "research"},
    ],
    ids=str,
)
@pytest.mark.parametrize("held", [False, True], ids=["", "suspended"])
def test_what_pods_are_made_with_takes_a_new_job(change: dict[str, Any], held: bool) -> None:
    job = make_job().spec(resources=FIRST)
    child, before = make_child(job), plan_of(job).create
    job.status(plan_of(job, child, make_pod().running()).status)
    plan = plan_of(job.spec(**change).suspended(held), child, make_pod().running())
    assert (plan.delete_child, plan.change_child) == (CHILD_UID, {})
    assert not touches_children(plan_of(job, child.metadata(**DELETED), make_pod().running().metadata(**DELETED)))
    [made] = [child for child in plan_of(job.suspended(False).status(None)).create if child["kind"] == "Job"]
    assert made != before[0]
    assert not touches_children(plan_of(job, make_child(job)))


CHANGED = {"pod": {"labels": {"team": "research"}}}


def test_pods_that_began_before_the_status_said_so_are_not_stopped_for_a_change() -> None:
    """The API server took it for a change of a job that does not run, as when no operator was there to see it run."""
    waiting = plan_of(make_job(), make_child(), make_pod())
    job, pod = make_job().spec(**CHANGED).metadata(generation=2).status(waiting.status), make_pod().running()
    plan = plan_of(job, make_child(), pod)
    assert not touches_children(plan)
    assert conditions_of(plan.status)["Running"] == ("True", "ChangeWaits")
    told = message_of(plan.status, "Running")
    assert told.startswith("1 of 1 pods run; what was changed in spec.resources, spec.pod or spec.queueName")
    job.status(plan.status)
    assert plan_of(job, make_child(), pod, now=at(60)) == Plan()
    tries = plan_of(job.spec(backoffLimit=9).metadata(generation=3), make_child(), pod)
    assert (tries.change_child, tries.delete_child) == ({"backoffLimit": 9}, None)
    undone = plan_of(make_job().metadata(generation=3).status(plan.status), make_child(), pod)
    assert conditions_of(undone.status)["Running"] == ("True", "PodsRunning")


@pytest.mark.parametrize(
    "pods", [(), (make_pod(1),), (make_pod().failed(1), make_pod(1))], ids=["gone", "new", "again"]
)
def test_a_change_that_waits_is_made_when_the_pods_have_ended(pods: tuple[PodBuilder, ...]) -> None:
    waiting = plan_of(make_job(), make_child(), make_pod())
    job = make_job().spec(**CHANGED).status(waiting.status)
    job.status(plan_of(job, make_child(), make_pod().running()).status)
    assert plan_of(job, make_child(), *pods).delete_child == CHILD_UID
    assert plan_of(job.suspended(), make_child(), make_pod().running()).delete_child == CHILD_UID


def test_a_trainer_that_is_done_is_not_stopped_for_a_change_while_a_sidecar_runs() -> None:
    job = make_job().spec(**CHANGED).status(plan_of(make_job(), make_child(), make_pod()).status)
    pod = make_pod().succeeded(since=NOW).held()
    for seconds in (10, 60):
        plan = plan_of(job, make_child(), pod, now=at(seconds))
        assert not touches_children(plan)
        job.status(plan.status)
    assert "mesh" in message_of(job.obj()["status"], "Running")


def test_a_change_still_waits_after_a_spec_that_this_version_does_not_know() -> None:
    """As while a newer CRD is there, and its operator not yet."""
    job = make_job().spec(**CHANGED).status(plan_of(make_job(), make_child(), make_pod()).status)
    for spec in (CHANGED, CHANGED | {"newer": 1}, CHANGED):
        plan = plan_of(make_job().spec(**spec).status(job.body["status"]), make_child(), make_pod().running())
        assert not touches_children(plan)
        job.status(plan.status or job.body["status"])
    assert conditions_of(job.body["status"])["Running"][1] == "ChangeWaits"


def test_a_sidecar_that_holds_the_job_is_the_cause_beside_a_change_that_waits() -> None:
    job = make_job().spec(**CHANGED).status(plan_of(make_job(), make_child(), make_pod()).status)
    job.status(plan_of(job, make_child(), make_pod().running()).status)
    held = plan_of(job, make_child(), make_pod().succeeded(since=NOW).held(), now=at(60))
    assert conditions_of(held.status)["Running"][1] == "HeldBySidecar"
    job.status(held.status)
    assert not touches_children(plan_of(job, make_child(), make_pod().succeeded(since=NOW).held(), now=at(70)))


def test_a_change_with_a_suspension_that_was_made_does_not_wait() -> None:
    """The user saw Suspended, and resumes with the change before the pod has stopped."""
    running = plan_of(make_job(), make_child(), make_pod().running())
    suspended = plan_of(make_job().suspended().status(running.status), make_child(), make_pod().running())
    job = make_job().spec(**CHANGED).status(suspended.status)
    assert plan_of(job, make_child().suspended(), make_pod().running()).delete_child == CHILD_UID


def test_pods_that_fail_for_good_have_the_last_word_and_not_a_change() -> None:
    job = make_job().spec(**CHANGED).status(plan_of(make_job(), make_child(), make_pod()).status)
    assert not touches_children(plan_of(job, make_child(), make_pod().failed(11)))


@pytest.mark.parametrize(
    "given",
    [{"resources": {"gpusPerNode": 1, "nodes": 1}}, {"resources": {}, "pod": {}}, {"pod": {"tolerations": []}}],
    ids=str,
)
def test_a_default_that_is_given_is_no_change(given: dict[str, Any]) -> None:
    assert not touches_children(plan_of(make_job().spec(**given), make_child(), make_pod().running()))


def test_a_job_that_an_earlier_release_made_is_left_as_it_is() -> None:
    child = make_child().metadata(annotations={})
    assert not touches_children(plan_of(make_job().spec(pod={"labels": {"a": "b"}}), child, make_pod().running()))


def test_a_job_that_has_ended_is_not_changed() -> None:
    job = make_job().spec(backoffLimit=9, resources={"memory": "32Gi"})
    for child in (make_child().complete(NOW), make_child().fails(NOW)):
        assert not touches_children(plan_of(job, child))
