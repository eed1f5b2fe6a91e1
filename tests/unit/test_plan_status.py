"""The status: whole from the first reconcile, read alike by kubectl, Flux and people, and written rarely."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.status import FineTuneJobStatus, Phase
from finetune_operator.plan.plan import Plan, make_plan
from finetune_operator.plan.status import LAST_WORDS_GRACE, PROGRESS_INTERVAL
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
    make_progress,
    make_word,
    message_of,
    plan_of,
    snapshot,
)
from status_samples import full_status

ALWAYS = {"Complete", "Failed", "Suspended", "Running", "Queued"}
PHASES: dict[Phase, tuple[JobBuilder, ChildBuilder | None, tuple[PodBuilder, ...]]] = {
    Phase.PENDING: (make_job(), make_child(), (make_pod(),)),
    Phase.QUEUED: (make_job().queue(), make_child(make_job().queue()), ()),
    Phase.RUNNING: (make_job(), make_child(), (make_pod().running(),)),
    Phase.SUSPENDED: (make_job().suspended(), make_child().suspended(), ()),
    Phase.COMPLETE: (make_job(), make_child().complete(NOW), (make_pod().succeeded(),)),
    Phase.FAILED: (make_job(), make_child().fails(NOW), (make_pod().failed(11),)),
}


def planned(phase: Phase, now: datetime = NOW) -> dict[str, Any]:
    """The status of a job in a phase."""
    job, child, pods = PHASES[phase]
    plan = plan_of(job, child, *pods, now=now)
    assert plan.status is not None
    return plan.status


def kstatus(generation: int, status: Mapping[str, Any]) -> str:
    """What kstatus, and so Flux and kpt, says of an object: its documented rules, in its order."""
    if status.get("observedGeneration") not in (None, generation):
        return "InProgress"
    true = {entry["type"]: entry["status"] for entry in status.get("conditions", ())}
    if true.get("Reconciling") == "True":
        return "InProgress"
    if true.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if true.get("Ready") in ("False", "Unknown") else "Current"


@pytest.mark.parametrize("phase", Phase)
def test_the_phase_is_the_one_condition_that_is_true(phase: Phase) -> None:
    status = planned(phase)
    assert status["phase"] == phase
    true = {type_ for type_, (value, _) in conditions_of(status).items() if value == "True"}
    assert true & ALWAYS == ({phase.value} if phase != Phase.PENDING else set())


@pytest.mark.parametrize("phase", Phase)
def test_every_standard_condition_is_there_from_the_first_reconcile(phase: Phase) -> None:
    status = planned(phase)
    assert set(conditions_of(status)) >= ALWAYS
    assert status["observedGeneration"] == 1
    assert {entry["observedGeneration"] for entry in status["conditions"]} == {1}
    assert status["strategy"] == "Full"


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (Phase.PENDING, "InProgress"),
        (Phase.QUEUED, "InProgress"),
        (Phase.RUNNING, "Current"),  # as a batch Job: a wait must not hang for ten hours
        (Phase.SUSPENDED, "Current"),
        (Phase.COMPLETE, "Current"),
        (Phase.FAILED, "Failed"),
    ],
)
def test_kstatus_reads_every_phase_as_it_reads_a_batch_job(phase: Phase, said: str) -> None:
    assert kstatus(1, planned(phase)) == said


def test_kstatus_waits_for_a_new_generation_to_be_seen() -> None:
    assert kstatus(2, planned(Phase.RUNNING)) == "InProgress"
    job = make_job().metadata(generation=2).status(planned(Phase.RUNNING))
    plan = plan_of(job, make_child(), make_pod().running())
    assert plan.status is not None
    assert kstatus(2, plan.status) == "Current"


@pytest.mark.parametrize("phase", [Phase.COMPLETE, Phase.FAILED])
def test_a_new_generation_is_seen_after_the_end_too_and_changes_nothing_else(phase: Phase) -> None:
    status = planned(phase)
    plan = plan_of(make_job().metadata(generation=2).status(status), now=at(999))
    assert plan.status is not None
    assert plan.status["observedGeneration"] == 2
    assert {entry.pop("observedGeneration") for entry in plan.status["conditions"]} == {2}
    for entry in status["conditions"]:
        entry.pop("observedGeneration")
    assert {**plan.status, "observedGeneration": 1} == status


def test_only_what_is_true_is_abnormal() -> None:
    for phase in Phase:
        conditions = conditions_of(planned(phase))
        assert conditions.get("Reconciling", ("True", ""))[0] == "True"
        assert conditions.get("Stalled", ("True", ""))[0] == "True"
        assert ("Ready" in conditions) == (phase in (Phase.COMPLETE, Phase.FAILED))


@pytest.mark.parametrize("end", [Phase.COMPLETE, Phase.FAILED])
@pytest.mark.parametrize("other", [*Phase])
def test_an_end_is_a_latch(end: Phase, other: Phase) -> None:
    job, child, pods = PHASES[other]
    ended = JobBuilder(job.obj()).status(planned(end))
    for observed in ((child, *pods), (None,)):
        plan = plan_of(ended, *observed, now=at(86_400))
        assert replace(plan, delete_child=None) == Plan()


@pytest.mark.parametrize("phase", Phase)
def test_at_rest_nothing_is_planned(phase: Phase) -> None:
    job, child, pods = PHASES[phase]
    for seconds in (0, 86_400):
        plan = plan_of(JobBuilder(job.obj()).status(planned(phase)), child, *pods, now=at(seconds))
        assert plan == Plan()


def test_the_start_is_that_of_the_first_trainer_and_stays() -> None:
    first = plan_of(make_job(), make_child(), make_pod().running(at(5)), now=at(6))
    assert first.status is not None
    assert first.status["startTime"] == "2026-01-01T12:00:05Z"
    again = plan_of(
        make_job().status(first.status), make_child(), make_pod().failed(41), make_pod(1).running(at(90)), now=at(99)
    )
    assert again.status is None or again.status["startTime"] == "2026-01-01T12:00:05Z"


def test_a_container_that_never_started_is_no_start() -> None:
    child = make_child().started(at(3))
    first = make_pod().failed(128, "StartError", "no driver", since=datetime(1970, 1, 1, tzinfo=UTC))
    waits = plan_of(make_job(), child, first, now=at(9))
    assert waits.status is not None
    assert "startTime" not in waits.status
    runs = plan_of(make_job().status(waits.status), child, first, make_pod(1).running(at(20)), now=at(21))
    assert runs.status is not None
    assert runs.status["startTime"] == "2026-01-01T12:00:20Z"
    fails = plan_of(make_job(), make_child().started(at(3)).fails(at(9)), first, now=at(10))
    assert fails.status is not None
    assert (fails.status["phase"], fails.status["startTime"]) == ("Failed", "2026-01-01T12:00:03Z")


def test_a_job_that_waits_has_not_started() -> None:
    assert "startTime" not in planned(Phase.PENDING)
    assert "startTime" not in planned(Phase.QUEUED)


def test_when_no_pod_is_left_to_tell_the_job_has_the_start() -> None:
    plan = plan_of(make_job(), make_child().started(at(3)).complete(at(50)), now=at(61))
    assert plan.status is not None
    assert (plan.status["startTime"], plan.status["completionTime"]) == ("2026-01-01T12:00:03Z", "2026-01-01T12:00:50Z")


def test_restarts_are_counted_and_never_go_back() -> None:
    plan = plan_of(make_job(), make_child(), make_pod(0).failed(41), make_pod(1).disrupted(), make_pod(2).running())
    assert plan.status is not None
    assert plan.status["restarts"] == 2
    assert plan_of(make_job().status(plan.status), make_child(), make_pod(2).running()).status is None


def test_a_restart_that_is_heard_of_after_the_end_is_counted_and_nothing_else_changes() -> None:
    pods = (make_pod(0).disrupted(), make_pod(1).succeeded(make_word(ExitCode.COMPLETE)))
    ended = plan_of(make_job(), make_child().complete(), pods[1]).status
    assert ended is not None
    assert ended.get("restarts", 0) == 0
    later = plan_of(make_job().status(ended), make_child().complete(), *pods, now=at(60))
    assert later == Plan(status={**ended, "restarts": 1})
    assert plan_of(make_job().status(later.status), make_child().complete(), *pods, now=at(60)) == Plan()
    assert plan_of(make_job().status(later.status), None, now=at(60)) == Plan()


@pytest.mark.parametrize(("code", "phase"), [(11, "Running"), (18, "Running"), (40, "Pending"), (1, "Pending")])
def test_a_pod_that_nothing_replaces_leaves_the_job_running_until_it_fails(code: int, phase: str) -> None:
    """Or its time would count as lost and as recovery, and none of it as failed."""
    plan = plan_of(make_job(), make_child(), make_pod().failed(code))
    assert plan.status is not None
    assert plan.status["phase"] == phase


def test_a_job_of_several_nodes_runs_when_all_do() -> None:
    child = make_child().nodes(2)
    cases = {
        "Pending": [
            (make_pod(0).running(), make_pod(1).node(1)),
            (make_pod(0).running(), make_pod(1).node(1).running().metadata(**DELETED)),
            (make_pod(0).running(), make_pod(1).node(1).failed(44), make_pod(2).node(1)),
            (make_pod(0).succeeded(), make_pod(1).running()),  # of one node: the other's pod is still to be made
        ],
        "Running": [
            (make_pod(0).running(), make_pod(1).node(1).running()),
            (make_pod(0).running(), make_pod(1).node(1).succeeded()),
            (
                make_pod(0).failed(44),
                make_pod(1).node(1).failed(1),
                make_pod(2).running(),
                make_pod(3).node(1).running(),
            ),
        ],
    }
    for phase, sights in cases.items():
        for pods in sights:
            plan = plan_of(make_job(), child, *pods)
            assert plan.status is not None
            assert plan.status["phase"] == phase, pods


@pytest.mark.parametrize("code", [code for code in ExitCode if code.permanent])
def test_a_pod_that_was_removed_gets_a_successor_whatever_its_exit_code(code: ExitCode) -> None:
    removed = make_pod(0).failed(code).disrupted("Evicted")
    child = make_child().started(NOW, active=1)
    starts = plan_of(make_job(), child, removed, make_pod(1).waiting("ImagePullBackOff"), now=at(60))
    assert starts.status is not None
    assert conditions_of(starts.status)["Reconciling"] == ("True", "ImagePullFailed")
    without = plan_of(make_job(), make_child().started(NOW), removed, now=at(60))
    assert without.status is not None
    assert without.status["podsMissingSince"] == "2026-01-01T12:01:00Z"


def test_a_job_is_complete_when_its_first_node_is_though_others_still_stop() -> None:
    pods = (make_pod(0).succeeded(make_word(ExitCode.COMPLETE)), make_pod(1).node(1).running().metadata(**DELETED))
    for child in (make_child().nodes(2).complete(type_="SuccessCriteriaMet"), make_child().nodes(2).complete()):
        plan = plan_of(make_job(), child, *pods)
        assert plan.status is not None
        assert plan.status["phase"] == "Complete"
        assert plan.status["completionTime"] == "2026-01-01T12:00:00Z"


def test_a_node_that_failed_for_good_leaves_the_job_running_until_it_fails_whatever_the_others_do() -> None:
    for other in (make_pod(0).running(), make_pod(0).failed(ExitCode.PEER_LOST), make_pod(0).failed(143)):
        plan = plan_of(make_job(), make_child().nodes(2), other, make_pod(1).node(1).failed(ExitCode.DATA_INVALID))
        assert plan.status is not None
        assert plan.status["phase"] == "Running"


# ---- progress ----


def running(progress_at: float | None = None, step: int = 1) -> JobBuilder:
    """A running job, with progress written at that moment."""
    job = make_job().status(planned(Phase.RUNNING))
    if progress_at is None:
        return job
    plan = plan_of(job, make_child(), make_pod().running(), progress=make_progress(step), now=at(progress_at))
    return make_job().status(plan.status)


def reported(job: JobBuilder, step: int, seconds: float) -> Plan:
    return plan_of(
        job, make_child(), make_pod().running(), progress=make_progress(step, 1000, loss=0.5), now=at(seconds)
    )


def test_the_first_report_is_written_at_once_with_our_own_time() -> None:
    plan = reported(running(), 1, 7)
    assert plan.status is not None
    assert plan.status["progress"]["step"] == 1
    assert plan.status["progress"]["updated"] == "2026-01-01T12:00:07Z"


def test_the_next_report_is_held_back_and_asks_to_be_looked_at_again() -> None:
    plan = reported(running(0), 2, 4)
    assert plan == Plan(requeue_after=timedelta(seconds=11))


def test_after_the_interval_the_newest_report_is_written() -> None:
    plan = reported(running(0), 9, PROGRESS_INTERVAL.total_seconds())
    assert plan.status is not None
    assert plan.status["progress"]["step"] == 9
    assert plan.requeue_after is None


def test_a_job_that_reports_every_second_is_written_at_most_every_15_seconds() -> None:
    job, written = running(0), [0.0]
    for second in range(1, 601):
        plan = reported(job, 1 + second, second)
        if plan.status is not None:
            written.append(second)
            job = make_job().status(plan.status)
    assert written == [15.0 * number for number in range(41)]


@pytest.mark.parametrize(("num_reporting", "seconds"), [(1, 15), (300, 15), (600, 30), (6000, 300)])
def test_the_more_jobs_report_the_less_often_each_is_written(num_reporting: int, seconds: int) -> None:
    job = running(0)
    seen = snapshot(job, make_child(), make_pod().running(), progress=make_progress(2))
    for waited in (seconds - 1, seconds):
        plan = make_plan(replace(seen, num_reporting=num_reporting), SETTINGS, at(waited))
        assert (plan.status is None) == (waited < seconds)
        assert plan.requeue_after == (timedelta(seconds=1) if waited < seconds else None)


def test_a_report_that_says_nothing_new_is_no_write_however_old_the_last() -> None:
    job = make_job().status(reported(running(), 5, 0).status)
    later = make_progress(5, 1000, loss=0.5, updated=at(3600))
    assert plan_of(job, make_child(), make_pod().running(), progress=later, now=at(3600)) == Plan()


def test_a_transition_does_not_wait_for_the_interval_and_does_not_carry_the_held_report() -> None:
    plan = plan_of(running(0), make_child(), make_pod().failed(41), progress=make_progress(3), now=at(2))
    assert plan.status is not None
    assert plan.status["phase"] == "Pending"
    assert plan.status["progress"]["step"] == 1


def test_the_end_carries_the_newest_report_when_there_is_no_last_word() -> None:
    child = make_child().fails(at(2))
    plan = plan_of(running(0), child, make_pod().failed(137), progress=make_progress(3), now=at(2))
    assert plan.status is not None
    assert plan.status["progress"]["step"] == 3


def test_the_last_word_counts_more_than_the_newest_report() -> None:
    word = make_word(ExitCode.COMPLETE, "done", progress=make_progress(100))
    pod = make_pod().succeeded(word)
    plan = plan_of(running(0), make_child().complete(at(2)), pod, progress=make_progress(97), now=at(2))
    assert plan.status is not None
    assert plan.status["progress"]["step"] == 100


def test_the_last_word_of_a_newer_trainer_counts_without_what_is_not_known_of_it() -> None:
    word = json.loads(make_word(ExitCode.COMPLETE, "done", progress=make_progress(100), result=full_status().result))
    newer = json.dumps({**word, "gpuHours": "3.5", "result": {**word["result"], "newField": 1}})
    plan = plan_of(make_job(), make_child().complete(NOW), make_pod().succeeded(newer))
    assert plan.status is not None
    assert (message_of(plan.status, "Complete"), plan.status["progress"]["step"]) == ("done", 100)
    assert plan.status["result"] == word["result"]
    failed = json.dumps({**json.loads(make_word(ExitCode.DATA_INVALID, "row 7 has no label")), "stage": "Loading"})
    plan = plan_of(make_job(), make_child().fails(NOW), make_pod().failed(11, word=failed))
    assert message_of(plan.status, "Failed") == "row 7 has no label"


def test_a_job_that_has_ended_has_no_time_to_go() -> None:
    going = make_progress(66, eta_seconds=300)
    failed = plan_of(running(0), make_child().fails(at(2)), make_pod().failed(137), progress=going, now=at(2))
    pod = make_pod().succeeded(make_word(ExitCode.COMPLETE, "done", progress=going))
    complete = plan_of(running(0), make_child().complete(at(2)), pod, now=at(2))
    for plan in (failed, complete):
        assert plan.status is not None
        assert plan.status["progress"]["step"] == 66
        assert "etaSeconds" not in plan.status["progress"]


def test_a_clock_that_went_back_holds_nothing_back_for_long() -> None:
    plan = reported(running(3600), 2, 0)
    assert plan.status is not None
    assert plan.status["progress"]["updated"] == "2026-01-01T12:00:00Z"


def test_progress_stays_while_a_job_is_suspended() -> None:
    job = JobBuilder(running(0).obj()).suspended()
    plan = plan_of(job, make_child().suspended())
    assert plan.status is not None
    assert plan.status["progress"]["step"] == 1


def test_the_status_fits_the_contract() -> None:
    for phase in Phase:
        status = planned(phase)
        assert FineTuneJobStatus.model_validate(status).to_json() == status


def test_the_grace_for_last_words_is_short_beside_the_interval_of_progress() -> None:
    assert timedelta() < LAST_WORDS_GRACE < PROGRESS_INTERVAL
