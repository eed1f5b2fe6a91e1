"""Conditions change as Kubernetes' do: the transition time moves with the status alone."""

from __future__ import annotations

from finetune_api.v1alpha1.status import Condition, ConditionStatus
from finetune_operator.plan.conditions import MESSAGE_LIMIT, Verdict, is_true, merge
from plan_builders import NOW, at


def test_the_first_conditions_are_of_now() -> None:
    [condition] = merge((), {"Running": Verdict(True, "PodsRunning", "1 of 1 pods run")}, 3, NOW)
    assert condition == Condition(
        type="Running",
        status=ConditionStatus.TRUE,
        observed_generation=3,
        last_transition_time=NOW,
        reason="PodsRunning",
        message="1 of 1 pods run",
    )


def test_another_reason_is_no_transition() -> None:
    earlier = merge((), {"Running": Verdict(False, "PodsPending")}, 1, NOW)
    [condition] = merge(earlier, {"Running": Verdict(False, "Unschedulable", "no node")}, 2, at(60))
    assert condition.last_transition_time == NOW
    assert (condition.reason, condition.message, condition.observed_generation) == ("Unschedulable", "no node", 2)


def test_another_status_is_a_transition() -> None:
    earlier = merge((), {"Running": Verdict(False, "PodsPending")}, 1, NOW)
    [condition] = merge(earlier, {"Running": Verdict(True, "PodsRunning")}, 1, at(60))
    assert condition.last_transition_time == at(60)


def test_a_type_without_a_verdict_goes() -> None:
    earlier = merge((), {"Reconciling": Verdict(True, "PodsPending"), "Running": Verdict(False, "PodsPending")}, 1, NOW)
    assert [c.type for c in merge(earlier, {"Running": Verdict(True, "PodsRunning")}, 1, NOW)] == ["Running"]


def test_the_order_is_that_of_the_verdicts() -> None:
    verdicts = {type_: Verdict(False, "X") for type_ in ("Failed", "Complete", "Running")}
    earlier = merge((), dict(reversed(verdicts.items())), 1, NOW)
    assert [c.type for c in merge(earlier, verdicts, 1, NOW)] == ["Failed", "Complete", "Running"]


def test_a_long_message_is_cut() -> None:
    [condition] = merge((), {"Failed": Verdict(True, "DataInvalid", "x" * 5000)}, 1, NOW)
    assert condition.message == "x" * MESSAGE_LIMIT


def test_only_true_is_true() -> None:
    conditions = merge((), {"A": Verdict(True, "X"), "B": Verdict(False, "X")}, 1, NOW)
    assert [type_ for type_ in "ABC" if is_true(conditions, type_)] == ["A"]
