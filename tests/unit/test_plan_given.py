"""A spec that a newer CRD let in: what runs goes on, and what has not begun waits for the operator that knows it."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.plan.given import read_spec
from finetune_operator.plan.plan import Plan
from plan_builders import (
    CHILD_UID,
    JobBuilder,
    at,
    conditions_of,
    make_child,
    make_job,
    make_pod,
    message_of,
    plan_of,
    reasons_of,
    touches_children,
)

NEWER = {"training": {"someNewOption": False}}
UPGRADE = "upgrade the operator, or give the cluster the CRD of its version"


def refused_by_an_earlier_release(**spec: Any) -> JobBuilder:
    """A job that failed because its spec was not understood, and the spec as it stands now."""
    return make_job().spec(**spec).status(plan_of(make_job().spec(task="Poetry")).status)


# ---- reading ----


def test_every_field_that_is_not_known_is_named_and_the_rest_is_read() -> None:
    spec = make_job().spec(pod={"tolerations": [{"key": "spot"}, {"key": "x", "newWord": 1}], "labels": {"a": "b"}})
    given = read_spec({**spec.obj()["spec"], "training": {"epochs": 7, "new": None}, "fromTheFuture": {"a": [1]}})
    assert sorted(problem.field for problem in given.unknown) == [
        "spec.fromTheFuture", "spec.pod.tolerations[1].newWord", "spec.training.new",
    ]  # fmt: skip
    assert given.spec is not None
    assert given.spec.training.epochs == 7
    assert [toleration.key for toleration in given.spec.pod.tolerations] == ["spot", "x"]
    assert given.invalid == ()


def test_what_is_wrong_beside_an_unknown_field_is_told_too() -> None:
    given = read_spec({**make_job().obj()["spec"], "task": "Poetry", "fromTheFuture": 1})
    assert (given.spec, [problem.field for problem in given.invalid]) == (None, ["spec.task"])


def test_a_spec_that_is_understood_is_without_reservation() -> None:
    given = read_spec(make_job().obj()["spec"])
    assert (given.spec is not None, given.unknown, given.invalid, given.reservation()) == (True, (), (), "")


# ---- what runs ----


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (NEWER, "spec.training.someNewOption"),
        ({"task": "Poetry"}, "spec.task"),
        ({"fromTheFuture": 1, "resources": {"nodes": 0}}, "spec.fromTheFuture, spec.resources.nodes"),
    ],
)
def test_what_runs_is_not_stopped_for_a_spec_that_is_not_understood(change: dict[str, Any], named: str) -> None:
    before = plan_of(make_job(), make_child(), make_pod().running()).status
    plan = plan_of(make_job().spec(**change).status(before), make_child(), make_pod().running())
    assert not touches_children(plan)
    assert plan.status is not None
    assert (plan.status["phase"], plan.status["strategy"]) == ("Running", "Full")
    told = message_of(plan.status, "Running")
    said = f"this version of the operator does not understand {named} and leaves the Job as it is; {UPGRADE}"
    assert told == f"1 of 1 pods run; {said}"
    assert reasons_of(plan) == []


def test_an_operator_that_understands_it_again_says_so_and_restarts_nothing() -> None:
    before = plan_of(make_job(), make_child(), make_pod().running()).status
    puzzled = plan_of(make_job().spec(**NEWER).status(before), make_child(), make_pod().running())
    plan = plan_of(make_job().status(puzzled.status), make_child(), make_pod().running())
    assert plan == Plan(status=before)


def test_a_job_that_is_not_understood_is_suspended_all_the_same_and_ends_as_it_ends() -> None:
    for change in (NEWER, {"task": "Poetry"}):
        job = make_job().spec(**change)
        suspended = plan_of(job.suspended(), make_child(), make_pod().running())
        assert suspended.change_child == {"suspend": True}
        assert suspended.status is not None
        assert suspended.status["phase"] == "Suspended"
        done = plan_of(make_job().spec(**change), make_child().complete(), make_pod().succeeded())
        assert conditions_of(done.status)["Complete"][0] == "True"
        assert "does not understand" not in message_of(done.status, "Complete")


def test_a_job_that_a_newer_operator_made_is_not_made_anew() -> None:
    """Its shape may have what is not known here."""
    child = make_child(make_job().spec(pod={"labels": {"a": "b"}}))
    job = make_job().spec(pod={"labels": {"a": "b"}, "newWord": 1}, resources={"memory": "32Gi"})
    assert not touches_children(plan_of(job, child, make_pod().running()))
    assert plan_of(make_job().spec(resources={"memory": "32Gi"}), child).delete_child == CHILD_UID


# ---- what has not begun ----


def test_what_has_not_begun_waits_with_the_field_named() -> None:
    plan = plan_of(make_job().spec(**NEWER))
    assert not touches_children(plan)
    assert conditions_of(plan.status)["Reconciling"] == ("True", "FieldUnknown")
    said = f"spec.training.someNewOption: not known to this version of the operator ({UPGRADE})"
    assert message_of(plan.status, "Reconciling") == said
    assert reasons_of(plan) == []
    begun = plan_of(make_job().status(plan.status))
    assert [child["kind"] for child in begun.create] == ["Job"]


def test_what_is_suspended_or_whose_name_is_taken_says_that() -> None:
    suspended = plan_of(make_job().spec(**NEWER).suspended())
    assert conditions_of(suspended.status)["Suspended"] == ("True", "SuspendedByUser")
    taken = plan_of(make_job().spec(**NEWER), make_child().owned_by("another"))
    assert conditions_of(taken.status)["Reconciling"] == ("True", "ChildNameTaken")
    assert not touches_children(taken)


# ---- what was refused ----


def test_a_job_that_another_version_refused_is_tried_by_one_that_takes_it_when_its_user_changes_it() -> None:
    assert plan_of(refused_by_an_earlier_release(), now=at(60)) == Plan()
    plan = plan_of(refused_by_an_earlier_release().metadata(generation=2), now=at(60))
    assert [child["kind"] for child in plan.create] == ["Job"]
    assert plan.status is not None
    assert plan.status["phase"] == "Pending"


def test_a_job_that_was_failed_while_it_ran_is_taken_up_again() -> None:
    """An earlier release failed what it did not understand; where it could not delete the Job, that goes on."""
    plan = plan_of(refused_by_an_earlier_release(task="Poetry"), make_child(), make_pod().running())
    assert plan.status is not None
    assert plan.status["phase"] == "Running"


def test_a_job_that_is_refused_again_rests() -> None:
    assert plan_of(refused_by_an_earlier_release(task="Poetry"), now=at(60)) == Plan()
