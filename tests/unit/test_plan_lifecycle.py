"""What is planned for the children over a job's life: one Job, adopted only when it is ours, suspended, deleted."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_operator.plan.plan import Plan
from plan_builders import (
    CHILD_UID,
    DELETED,
    JOB_UID,
    NOW,
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
    text_of,
    touches_children,
)


def kinds(plan: Plan) -> list[str]:
    return [child["kind"] for child in plan.create]


def reason(plan: Plan, type_: str = "Reconciling") -> str:
    return conditions_of(plan.status)[type_][1]


# ---- creation ----


def test_a_new_job_gets_its_job_and_a_status() -> None:
    plan = plan_of(make_job())
    assert kinds(plan) == ["Job"]
    assert reason(plan) == "PodsPending"
    assert plan.requeue_after is None


def test_a_claim_that_is_asked_for_comes_before_the_job_that_mounts_it() -> None:
    plan = plan_of(make_job().spec(output={"uri": "pvc://models/x", "createClaim": {"size": "1Gi"}}))
    assert kinds(plan) == ["PersistentVolumeClaim", "Job"]


def test_planning_twice_asks_for_the_very_same_objects() -> None:
    assert plan_of(make_job()).create == plan_of(make_job(), now=at(999)).create


@pytest.mark.parametrize("state", ["waiting", "running", "done", "failed", "suspended", "being deleted"])
def test_where_a_job_is_there_is_never_a_second_one(state: str) -> None:
    child = {
        "waiting": make_child(),
        "running": make_child(),
        "done": make_child().complete(NOW),
        "failed": make_child().fails(NOW),
        "suspended": make_child().suspended(),
        "being deleted": make_child().metadata(**DELETED),
    }[state]
    for job in (make_job(), make_job().suspended(), make_job().queue(), make_job().spec(task="Poetry")):
        for seconds in (0, 86_400):
            assert plan_of(job, child, now=at(seconds)).create == ()


def test_a_job_that_someone_deleted_is_made_again() -> None:
    running = plan_of(make_job(), make_child(), make_pod().running())
    plan = plan_of(make_job().status(running.status))
    assert kinds(plan) == ["Job"]


WIDE = {"resources": {"nodes": 2}, "output": {"uri": "pvc://models/x", "createClaim": {"size": "1Gi"}}}


NOT_FOUND = '0/3 nodes are available: persistentvolumeclaim "models" not found.'


def test_a_claim_that_the_scheduler_misses_is_made_again_when_it_has_had_a_minute_to_hear_of_it() -> None:
    """Somebody may have deleted it, and nothing watches it."""
    job = make_job().spec(output=WIDE["output"])
    child = make_child(job)
    claim = plan_of(job).create[:1]
    early = plan_of(job, child, make_pod().unschedulable(NOT_FOUND), now=at(45))
    assert (early.restore, early.requeue_after) == ((), timedelta(seconds=15))
    assert plan_of(job, child, make_pod().unschedulable(NOT_FOUND), now=at(60)).restore == claim
    for words in ("0/3 nodes are available: 3 Insufficient cpu.", 'persistentvolumeclaim "data" not found'):
        plan = plan_of(job, child, make_pod().unschedulable(words), now=at(60))
        assert (plan.restore, plan.requeue_after) == ((), None)
    late = make_job().spec(output={"uri": "pvc://models/x"})
    assert plan_of(late, make_child(late), make_pod().unschedulable(NOT_FOUND), now=at(60)).restore == ()


def test_a_service_is_made_again_where_pods_wait_for_long() -> None:
    job = make_job().spec(**WIDE)
    child = make_child(job)
    first = make_pod().running(), make_pod(1).node(1)
    needed = plan_of(job).create[:2]
    assert [body["kind"] for body in needed] == ["PersistentVolumeClaim", "Service"]
    early = plan_of(job, child, *first, now=at(59))
    assert (early.restore, early.requeue_after) == ((), timedelta(seconds=1))
    assert plan_of(job, child, *first, now=at(60)).restore == needed[1:]
    again = make_pod(2).created(at(99)), make_pod(3).node(1).created(at(99))
    lost = make_pod().failed(44), make_pod(1).node(1).failed(44)
    assert plan_of(job, child, *lost, *again, now=at(99)).restore == needed[1:]
    assert plan_of(make_job(), make_child(), make_pod(), now=at(999)).restore == ()


def test_what_pods_need_is_not_made_again_while_they_run_or_are_not_to() -> None:
    job = make_job().spec(**WIDE)
    child = make_child(job)
    pods = make_pod().running(), make_pod(1).node(1).running()
    assert plan_of(job, child, *pods, now=at(999)).restore == ()
    ended = make_child(job).complete(at(900))
    assert plan_of(job, ended, make_pod().succeeded(), now=at(999)).restore == ()
    assert plan_of(job.suspended(), child.suspended(), make_pod(), now=at(999)).restore == ()


def test_while_a_pod_of_an_earlier_job_ends_there_is_no_new_one() -> None:
    plan = plan_of(make_job(), None, make_pod().of("an-earlier-job").running().metadata(**DELETED))
    assert not touches_children(plan)
    assert reason(plan) == "EarlierPodsStopping"
    assert "router-0-0" in message_of(plan.status, "Reconciling")
    assert kinds(plan_of(make_job(), None, make_pod().of("an-earlier-job").failed(143))) == ["Job"]


def test_pods_of_an_earlier_job_say_nothing_of_this_one() -> None:
    plan = plan_of(make_job(), make_child(), make_pod().of("an-earlier-job").running())
    assert plan.status is not None
    assert plan.status["phase"] == "Pending"


def test_what_the_api_server_refuses_is_told_to_the_user() -> None:
    plan = plan_of(make_job(), obstacle="exceeded quota: gpus, requested: 8, used: 8, limited: 8")
    assert reason(plan) == "ChildRefused"
    assert "exceeded quota: gpus" in message_of(plan.status, "Reconciling")
    assert kinds(plan) == ["Job"]


# ---- adoption ----


@pytest.mark.parametrize("owner", [None, "another-uid"])
@pytest.mark.parametrize("job", [make_job(), make_job().suspended(), make_job().queue()], ids=["", "suspend", "queue"])
def test_a_job_of_another_owner_is_never_touched(owner: str | None, job: JobBuilder) -> None:
    for child in (make_child().owned_by(owner), make_child().owned_by(owner).suspended().fails(NOW)):
        plan = plan_of(job, child, make_pod().failed(11))
        assert not touches_children(plan)
        assert plan.status is not None
        assert plan.status["phase"] == "Pending"
        assert reason(plan) == "ChildNameTaken"
        assert "a Job named router exists" in message_of(plan.status, "Reconciling")
        assert plan.requeue_after == timedelta(minutes=1)


ANOTHERS = make_child().owned_by("another-uid").started(at(-7200)).complete(at(-3600))
ANOTHERS_POD = (
    make_pod()
    .created(at(-7200))
    .succeeded(make_word(ExitCode.COMPLETE, "done", progress=make_progress(100)), since=at(-7100))
)


@pytest.mark.parametrize(
    ("child", "pod"),
    [(ANOTHERS, ANOTHERS_POD), (make_child().owned_by("another-uid"), make_pod().running(at(-9)))],
    ids=["ended", "running"],
)
def test_of_a_job_of_another_owner_nothing_is_told_as_its_own(child: ChildBuilder, pod: PodBuilder) -> None:
    """Most often it is that of a FineTuneJob which had the name before, and about to go."""
    refused = make_job().spec(**INSIDE, ttlSecondsAfterFinished=3600)
    for job in (make_job(), refused):
        plan = plan_of(job, child, pod, now=at(1))
        assert plan.status is not None
        assert plan.status.keys().isdisjoint({"startTime", "progress", "result"})
        assert plan.status.get("completionTime") in (None, text_of(at(1)))
        assert not plan_of(job.status(plan.status), child, pod, now=at(2)).delete_self
    mended = make_job().metadata(generation=2).status(refused.obj()["status"])
    assert kinds(plan_of(mended, None, now=at(3))) == ["Job"]


def test_the_squatted_name_is_taken_once_it_is_free() -> None:
    taken = plan_of(make_job(), make_child().owned_by(None))
    plan = plan_of(make_job().status(taken.status))
    assert kinds(plan) == ["Job"]
    assert reason(plan) == "PodsPending"


def test_a_job_of_ours_is_adopted_by_its_uid() -> None:
    plan = plan_of(make_job(), make_child().owned_by(JOB_UID), make_pod().running())
    assert plan.status is not None
    assert plan.status["phase"] == "Running"


# ---- suspend and resume ----


@pytest.mark.parametrize("job", [make_job(), make_job().queue()], ids=["", "queue"])
def test_a_job_that_is_created_suspended_has_no_job_until_it_is_resumed(job: JobBuilder) -> None:
    """Where a LocalQueue is named `default` Kueue labels every Job, and would start a suspended one."""
    plan = plan_of(job.suspended())
    assert not touches_children(plan)
    assert reason(plan, "Suspended") == "SuspendedByUser"
    assert kinds(plan_of(job.suspended(False).status(plan.status))) == ["Job"]


def test_suspending_and_resuming_sets_the_jobs_own_switch_once() -> None:
    suspend = plan_of(make_job().suspended(), make_child(), make_pod().running())
    assert suspend.change_child == {"suspend": True}
    assert suspend.delete_child is None
    job = make_job().suspended().status(suspend.status)
    stopped = plan_of(job, make_child().suspended())
    assert stopped.change_child == {}
    resume = plan_of(make_job().status(stopped.status), make_child().suspended())
    assert resume.change_child == {"suspend": False}
    assert conditions_of(resume.status)["Suspended"][0] == "False"
    assert plan_of(make_job().status(resume.status), make_child()).change_child == {}


def test_while_pods_stop_the_job_says_so() -> None:
    stopping = plan_of(make_job().suspended(), make_child().suspended(), make_pod().running())
    stopped = plan_of(make_job().suspended(), make_child().suspended())
    assert message_of(stopping.status, "Suspended") == "pods are saving a checkpoint and stopping"
    assert message_of(stopped.status, "Suspended") == "spec.suspend is true"


DENIED = 'jobs.batch "router" is forbidden: a Job needs the label team'


def test_a_job_that_may_not_be_suspended_goes_on_running_and_says_why() -> None:
    running = plan_of(make_job(), make_child(), make_pod().running()).status
    job = make_job().suspended().status(running)
    plan = plan_of(job, make_child(), make_pod().running(), obstacle=DENIED)
    assert plan.change_child == {"suspend": True}
    assert plan.status is not None
    assert plan.status["phase"] == "Running"
    assert message_of(plan.status, "Running") == f"1 of 1 pods run; it could not be suspended yet: {DENIED}"
    assert plan.events == ()
    held = plan_of(job.status(plan.status), make_child().suspended(), make_pod().running())
    assert conditions_of(held.status)["Suspended"] == ("True", "SuspendedByUser")


def test_a_job_of_a_queue_that_may_not_be_deleted_is_not_suspended_either() -> None:
    job = make_job().queue()
    plan = plan_of(job.suspended(), make_child(job).queued(admitted=True), make_pod().running(), obstacle=DENIED)
    assert plan.status is not None
    assert plan.status["phase"] == "Running"


def test_a_change_that_the_api_server_refuses_is_told_to_the_user() -> None:
    plan = plan_of(make_job().spec(backoffLimit=9), make_child(), make_pod().running(), obstacle=DENIED)
    said = f"1 of 1 pods run; what else it needs could not be done yet: {DENIED}"
    assert message_of(plan.status, "Running") == said


def test_without_a_claim_to_keep_checkpoints_on_the_job_says_what_suspending_costs() -> None:
    job = make_job().spec(output={"uri": "s3://models/router"}).suspended()
    anew = "training will start anew, because only a pvc:// output keeps checkpoints"
    stopping = plan_of(job, make_child(job).suspended(), make_pod().running())
    assert message_of(stopping.status, "Suspended") == f"pods are stopping; {anew}"
    assert message_of(plan_of(job).status, "Suspended") == f"spec.suspend is true; {anew}"


@pytest.mark.parametrize("end", ["complete", "failed"])
def test_a_job_that_ended_is_not_suspended_any_more(end: str) -> None:
    child = make_child().complete(NOW) if end == "complete" else make_child().fails(NOW)
    pod = make_pod().succeeded() if end == "complete" else make_pod().failed(1)
    plan = plan_of(make_job().suspended(), child, pod)
    assert plan.change_child == {}
    assert conditions_of(plan.status)[end.title()][0] == "True"


# ---- Kueue ----


def test_a_job_of_a_queue_waits_for_kueue_and_is_never_unsuspended_by_us() -> None:
    job = make_job().queue()
    plan = plan_of(job)
    assert plan.create[0]["spec"]["suspend"] is True
    waiting = plan_of(job, make_child(job))
    assert waiting.change_child == {}
    assert waiting.status is not None
    assert waiting.status["phase"] == "Queued"
    told = message_of(waiting.status, "Queued")
    assert told.startswith("waiting for admission by queue research; ")
    # Kueue's own words are in its Workload: the operator needs no Kueue to be there, and reads none.
    assert told.endswith(
        "`kubectl --namespace=team-a describe workloads.kueue.x-k8s.io "
        f"--selector=kueue.x-k8s.io/job-uid={CHILD_UID}` says what for"
    )


def test_a_job_that_kueue_admits_runs_and_one_it_preempts_waits_again() -> None:
    job = make_job().queue()
    admitted = plan_of(job, make_child(job).queued(admitted=True), make_pod().running())
    assert admitted.status is not None
    assert admitted.status["phase"] == "Running"
    preempted = plan_of(job.status(admitted.status), make_child(job))
    assert preempted.change_child == {}
    assert preempted.status is not None
    assert preempted.status["phase"] == "Queued"


def test_suspending_a_job_of_a_queue_deletes_its_job_so_that_kueue_cannot_start_it() -> None:
    job = make_job().queue().suspended()
    plan = plan_of(job, make_child(job).queued(admitted=True), make_pod().running())
    assert plan.delete_child == CHILD_UID
    assert plan.change_child == {}
    going = plan_of(job.status(plan.status), make_child(job).metadata(**DELETED), make_pod().running())
    assert not touches_children(going)
    gone = plan_of(job)
    assert not touches_children(gone)
    assert gone.status is not None
    assert gone.status["phase"] == "Suspended"


def test_resuming_a_job_of_a_queue_makes_its_job_again_when_the_old_one_is_gone() -> None:
    job = make_job().queue()
    suspended = plan_of(make_job().queue().suspended())
    waiting = plan_of(job.status(suspended.status), make_child(job).metadata(**DELETED))
    assert not touches_children(waiting)
    assert kinds(plan_of(job)) == ["Job"]


def test_a_job_that_waits_is_moved_to_the_queue_that_it_is_given() -> None:
    job = make_job().queue("reserach")
    waiting = make_child(job)
    job.queue("research")
    assert plan_of(job, waiting).delete_child == CHILD_UID
    assert kinds(plan_of(job)) == ["Job"]
    assert plan_of(job, make_child(job)).delete_child is None


def test_a_job_that_kueue_put_into_its_default_queue_stays_there() -> None:
    job = make_job()
    waiting = plan_of(job, make_child(job).queued("default"))
    assert not touches_children(waiting)
    assert message_of(waiting.status, "Queued").startswith("waiting for admission by queue default; ")
    job.suspended()
    assert plan_of(job, make_child(job).queued("default")).delete_child == CHILD_UID
    assert not touches_children(plan_of(job))


# ---- refusal ----

INSIDE = {"output": {"uri": "file:///models/router"}}
# By a CRD that has no such rule yet.
LET_IN = {
    "strategy": {"distillation": {"teacher": {"uri": "pvc://models/teacher"}, "relation": {}, "response": {}}},
    "resources": {"gpusPerNode": 2},
}


def test_an_output_that_would_go_with_the_pod_is_refused() -> None:
    for job in (make_job().spec(**INSIDE), make_job().spec(**INSIDE).suspended()):
        plan = plan_of(job)
        assert not touches_children(plan)
        assert reason(plan, "Failed") == "SpecInvalid"
        told = message_of(plan.status, "Failed")
        assert told.startswith("spec.output.uri: file:///models/router is inside the pod")
        assert "pvc://claim/path or s3://bucket/path" in told
    for uri in ("pvc://models/router", "s3://models/router"):
        assert kinds(plan_of(make_job().spec(output={"uri": uri}))) == ["Job"]


@pytest.mark.parametrize(("fields", "field"), [(INSIDE, "spec.output.uri: "), (LET_IN, "spec.resources: ")])
def test_a_spec_that_is_refused_fails_with_the_field_and_is_not_tried_again(fields: dict[str, Any], field: str) -> None:
    job = make_job().spec(**fields)
    plan = plan_of(job)
    assert not touches_children(plan)
    assert plan.requeue_after is None
    assert reason(plan, "Failed") == "SpecInvalid"
    assert message_of(plan.status, "Failed").startswith(field)
    assert plan_of(job.status(plan.status), now=at(999)) == Plan()


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "Poetry"},
        {"model": "a string"},
        {"strategy": {}},
        {"training": {"learningRate": "nan"}},
        {"data": None},
        {"resources": {"nodes": 0}},
    ],
    ids=str,
)
def test_every_spec_that_cannot_be_read_becomes_a_condition(fields: dict[str, Any]) -> None:
    plan = plan_of(make_job().spec(**fields))
    assert reason(plan, "Failed") == "SpecInvalid"
    assert f"spec.{next(iter(fields))}" in message_of(plan.status, "Failed")
    assert plan.status is not None
    assert "strategy" not in plan.status


def test_a_mended_spec_may_try() -> None:
    refused = plan_of(make_job().spec(task="Poetry"))
    plan = plan_of(make_job().metadata(generation=2).status(refused.status))
    assert kinds(plan) == ["Job"]
    assert plan.status is not None
    assert plan.status["phase"] == "Pending"
    assert "completionTime" not in plan.status


def test_a_release_that_takes_the_spec_starts_nothing_that_its_user_gave_up() -> None:
    refused = plan_of(make_job().spec(task="Poetry"))
    assert plan_of(make_job().status(refused.status), now=at(999)) == Plan()


def test_a_job_whose_job_an_earlier_release_stopped_for_its_spec_goes_on_while_that_is_there() -> None:
    refused = refused_after(at(5))
    plan = plan_of(make_job().status(refused), make_child().metadata(**DELETED), make_pod().running())
    assert conditions_of(plan.status)["Failed"][0] == "False"
    assert kinds(plan_of(make_job().status(plan.status))) == ["Job"]
    assert plan_of(make_job().status(refused)) == Plan()


def refused_after(start: datetime) -> dict[str, Any]:
    """The status of a job that was refused for its spec after a trainer had started."""
    status = plan_of(make_job().spec(task="Poetry")).status
    assert conditions_of(status)["Failed"] == ("True", "SpecInvalid")
    return {**(status or {}), "startTime": text_of(start)}


QUEUED = make_job().queue()
BEGUN = plan_of(QUEUED, make_child(QUEUED).queued(admitted=True), make_pod().running()).status or {}


@pytest.mark.parametrize("spec", [{"task": "Poetry"}, INSIDE, LET_IN], ids=["value", "output", "rule"])
def test_what_has_trained_is_not_failed_for_its_spec_but_waits_for_it_to_be_mended(spec: dict[str, Any]) -> None:
    """As under Kueue, where a suspended job has no Job, after a rollback or a change."""
    held = plan_of(make_job().queue().spec(**spec).suspended().status(BEGUN))
    assert conditions_of(held.status)["Suspended"] == ("True", "SuspendedByUser")
    assert not touches_children(held)
    resumed = plan_of(make_job().queue().spec(**spec).status(held.status))
    assert (reason(resumed), resumed.create) == ("SpecRefused", ())
    assert resumed.status is not None
    assert resumed.status["strategy"] == BEGUN["strategy"]
    field = "task" if "task" in spec else next(iter(spec)).replace("strategy", "resources")
    assert message_of(resumed.status, "Reconciling").startswith(f"spec.{field}")
    assert "it has trained, and goes on when that is mended" in message_of(resumed.status, "Reconciling")
    assert plan_of(make_job().queue().spec(**spec).status(resumed.status), now=at(999)).status is None
    mended = plan_of(make_job().queue().metadata(generation=3).status(resumed.status))
    assert kinds(mended) == ["Job"]
    assert mended.status is not None
    assert mended.status["startTime"] == BEGUN["startTime"]


CODE_10 = make_word(ExitCode.SPEC_INVALID, "training.maxLength 4096 is over the model's 512")


def test_what_the_trainer_refused_is_over_whatever_comes_then() -> None:
    """Its word for exit code 10 is the one that the operator has for its own refusal."""
    child = make_child().fails(NOW, "PodFailurePolicy")
    pod = make_pod().failed(ExitCode.SPEC_INVALID, word=CODE_10)
    job = make_job().spec(ttlSecondsAfterFinished=3600)
    job.status(plan_of(job, child, pod, now=at(1)).status)
    assert conditions_of(job.obj()["status"])["Failed"] == ("True", "SpecInvalid")
    left = timedelta(seconds=3500)
    for children in ((child, pod), (child,), (None,), (make_child(), pod)):
        assert plan_of(job, *children, now=at(100)) == Plan(requeue_after=left)
        assert plan_of(job, *children, now=at(3600)) == Plan(delete_self=True)
    changed = plan_of(job.metadata(generation=2), None, now=at(100))
    assert not touches_children(changed)
    assert conditions_of(changed.status)["Failed"] == ("True", "SpecInvalid")


def test_a_job_that_failed_for_another_cause_may_not_though_its_spec_changes() -> None:
    failed = plan_of(make_job(), make_child().fails(NOW), make_pod().failed(11))
    plan = plan_of(make_job().metadata(generation=2).status(failed.status))
    assert not touches_children(plan)


def test_what_runs_already_is_not_refused_by_a_release_that_supports_less() -> None:
    for fields in (LET_IN, INSIDE):
        child = make_child(make_job().spec(resources=fields.get("resources")))
        plan = plan_of(make_job().spec(**fields), child, make_pod().running())
        assert plan.status is not None
        assert plan.status["phase"] == "Running"
        assert not touches_children(plan)


# ---- the end ----


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    for child in (None, make_child(), make_child().complete(NOW)):
        assert plan_of(make_job().metadata(**DELETED), child, make_pod().running()) == Plan()


def ended(**spec: Any) -> JobBuilder:
    plan = plan_of(make_job(), make_child().complete(at(50)), make_pod().succeeded(), now=at(51))
    return make_job().spec(**spec).status(plan.status)


def test_without_a_time_to_live_a_job_stays() -> None:
    assert plan_of(ended(), now=at(10**9)) == Plan()


def test_a_job_is_deleted_when_its_time_to_live_is_over() -> None:
    assert plan_of(ended(ttlSecondsAfterFinished=60), now=at(70)) == Plan(requeue_after=timedelta(seconds=40))
    assert plan_of(ended(ttlSecondsAfterFinished=60), now=at(110)) == Plan(delete_self=True)
    assert plan_of(ended(ttlSecondsAfterFinished=0), now=at(51)) == Plan(delete_self=True)


@pytest.mark.parametrize("pods", [(), (make_pod(),), (make_pod().running(),), (make_pod().failed(1),)])
def test_a_job_that_goes_on_under_one_that_has_ended_is_stopped(pods: tuple[PodBuilder, ...]) -> None:
    """As when a FineTuneJob is restored from a backup, and its status a moment after the operator has begun."""
    for child in (make_child(), make_child().suspended()):
        assert plan_of(ended(), child, *pods, now=at(99)) == Plan(delete_child=CHILD_UID)
    for child in (make_child().metadata(**DELETED), make_child().owned_by("another"), make_child().fails(at(50))):
        assert plan_of(ended(), child, *pods, now=at(99)) == Plan()


def test_what_the_trainer_refused_does_not_begin_again_when_it_is_restored() -> None:
    job = make_job().status(refused_after(at(-9)))
    assert plan_of(job, make_child(), make_pod().running()) == Plan(delete_child=CHILD_UID)


def test_what_was_refused_does_not_begin_when_it_is_restored() -> None:
    """A restored object's generation is 1 again; another release may take its spec."""
    refused = plan_of(make_job().spec(task="Poetry").metadata(generation=3)).status
    assert not touches_children(plan_of(make_job().metadata(generation=1).status(refused)))
    assert kinds(plan_of(make_job().metadata(generation=4).status(refused))) == ["Job"]


@pytest.mark.parametrize("pod", [make_pod().succeeded(), make_pod().failed(11)], ids=["done", "failed for good"])
def test_a_job_whose_end_is_near_is_not_deleted_with_its_logs(pod: PodBuilder) -> None:
    """What is known of it may be older than the status that tells its end."""
    assert plan_of(ended(), make_child(), pod, now=at(99)) == Plan()


def test_a_refused_job_has_a_time_to_live_too() -> None:
    job = make_job().spec(task="Poetry", ttlSecondsAfterFinished=60)
    plan = plan_of(job)
    assert plan.requeue_after == timedelta(seconds=60)
    assert plan_of(job.status(plan.status), now=at(61)).delete_self


def test_a_running_job_is_not_deleted_whatever_its_time_to_live() -> None:
    running = plan_of(make_job(), make_child(), make_pod().running())
    job = make_job().spec(ttlSecondsAfterFinished=0).status(running.status)
    assert not plan_of(job, make_child(), make_pod().running(), now=at(10**6)).delete_self


WROTE_TOO_MUCH = 'Usage of EmptyDir volume "scratch" exceeds the limit "50Gi". '


def test_a_job_that_exceeds_its_storage_at_every_try_ends_though_its_trainers_stop_in_time() -> None:
    """The Job counts none of them: each says that it was asked to stop."""
    tries = [make_pod(number).evicted(WROTE_TOO_MUCH, ExitCode.STOPPED) for number in range(3)]
    job = make_job().spec(backoffLimit=2)
    again = plan_of(job, make_child(), *tries[:2], make_pod(2).running())
    assert conditions_of(again.status)["Failed"][0] == "False"
    assert again.delete_child is None
    plan = plan_of(job, make_child(), *tries, make_pod(3))
    assert conditions_of(plan.status)["Failed"] == ("True", "StorageFull")
    assert "spec.resources.ephemeralStorage" in message_of(plan.status, "Failed")
    assert (plan.delete_child, plan.requeue_after) == (None, timedelta())  # with the Job goes what tells of it
    job.status(plan.status)
    for pods in ([*tries, make_pod(3)], [*tries, make_pod(3).running()], []):
        assert plan_of(job, make_child(), *pods, now=at(9)) == Plan(delete_child=CHILD_UID)
    assert plan_of(job, make_child().metadata(**DELETED), *tries) == Plan()
    assert plan_of(job) == Plan()


def test_the_time_to_live_does_not_hold_up_the_end_of_its_job() -> None:
    job = make_job().spec(backoffLimit=0, ttlSecondsAfterFinished=60)
    pod = make_pod().evicted(WROTE_TOO_MUCH, ExitCode.STOPPED)
    plan = plan_of(job, make_child(), pod)
    assert plan.requeue_after == timedelta()
    left = plan_of(job.status(plan.status), make_child(), pod, now=at(20))
    assert left == Plan(delete_child=CHILD_UID, requeue_after=timedelta(seconds=40))


def test_a_last_try_that_was_killed_for_its_storage_is_left_to_the_job_to_count() -> None:
    plan = plan_of(make_job().spec(backoffLimit=0), make_child(), make_pod().evicted(WROTE_TOO_MUCH))
    assert plan.delete_child is None
    assert conditions_of(plan.status)["Failed"][0] == "False"
