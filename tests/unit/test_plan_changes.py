"""What a change of the spec does to the Job that is there: changed in place, made anew, or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from plan_builders import CHILD_UID, DELETED, NOW, make_child, make_job, make_pod, plan_of, touches_children

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
    plan = plan_of(job.spec(**change).suspended(held), child, make_pod().running())
    assert (plan.delete_child, plan.change_child) == (CHILD_UID, {})
    assert not touches_children(plan_of(job, child.metadata(**DELETED), make_pod().running().metadata(**DELETED)))
    [made] = [child for child in plan_of(job.suspended(False)).create if child["kind"] == "Job"]
    assert made != before[0]
    assert not touches_children(plan_of(job, make_child(job)))


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
