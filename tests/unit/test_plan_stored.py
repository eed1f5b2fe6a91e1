"""A status that another version wrote is read as far as it goes, and an end in it stays the end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.v1alpha1.status import Phase
from finetune_operator.plan.status import has_ended
from finetune_operator.plan.stored import read_status
from plan_builders import make_job, plan_of
from status_samples import full_status

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
_FIELDS = [*full_status().to_json(), "fromTheFuture"]
COMPLETE = {
    "type": "Complete",
    "status": "True",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-01T12:00:00Z",
    "reason": "Complete",
    "message": "done",
}


def test_a_status_of_this_version_is_read_whole() -> None:
    assert read_status(full_status().to_json()) == full_status()


def test_an_unknown_field_takes_nothing_else_along() -> None:
    assert read_status({**full_status().to_json(), "fromTheFuture": {"x": 1}}) == full_status()


def test_a_field_that_cannot_be_read_takes_nothing_else_along() -> None:
    status = read_status({**full_status().to_json(), "phase": "Melting", "progress": {"step": "many"}})
    assert (status.phase, status.progress) == (None, None)
    assert status.result == full_status().result
    assert status.conditions == full_status().conditions


@pytest.mark.parametrize(
    "change",
    [
        {"severity": "high"},
        {"reason": "not one word"},
        {"reason": ""},
        {"lastTransitionTime": "yesterday"},
        {"observedGeneration": "one"},
        {"message": None},
        {"message": "x" * 40_000},
    ],
)
def test_an_end_is_a_latch_though_its_condition_is_strange(change: dict[str, Any]) -> None:
    others = [{**COMPLETE, "type": f"Other{number}"} for number in range(20)]
    for conditions in ([{**COMPLETE, **change}], [*others, {**COMPLETE, **change}]):
        assert has_ended(read_status({"conditions": conditions}))


@pytest.mark.parametrize(
    "conditions",
    [
        None,
        "Complete",
        [],
        [None, 5, "Complete", []],
        [{**COMPLETE, "status": "Perhaps"}],
        [{**COMPLETE, "type": ["Complete"]}],
        [{"status": "True"}],
    ],
)
def test_conditions_that_say_nothing_are_none(conditions: Any) -> None:
    assert read_status({"conditions": conditions}).conditions == ()


@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4))
def test_no_status_stops_the_operator_and_what_it_writes_is_then_settled(status: dict[str, Any]) -> None:
    plan = plan_of(make_job().status(status))
    written = plan.status if plan.status is not None else status
    assert plan_of(make_job().status(written)).status is None


def test_a_status_from_another_version_is_written_anew() -> None:
    plan = plan_of(make_job().status({"phase": "Melting", "conditions": "none", "fromTheFuture": 1}))
    assert plan.status is not None
    assert plan.status["phase"] == Phase.PENDING
