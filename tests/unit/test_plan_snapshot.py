"""What is read from API objects."""

from __future__ import annotations

import pytest

from finetune_operator.plan.snapshot import observe_job, observe_pod
from plan_builders import CHILD_UID, DELETED, JOB_UID, NOW, at, make_child, make_job, make_pod, text_of


def test_a_job_that_was_just_created() -> None:
    job = observe_job(make_child().obj())
    assert (job.uid, job.owner_uid, job.nodes) == (CHILD_UID, JOB_UID, 1)
    assert not job.has_ended
    assert not job.suspended
    assert job.queue == ""
    assert not job.being_deleted
    assert (job.start_time, job.ended_at) == (None, None)


def test_what_of_a_job_can_change_is_read() -> None:
    spec = {"backoffLimit": 9, "activeDeadlineSeconds": 60}
    job = observe_job(make_child(make_job().spec(**spec)).obj())
    assert (job.backoff_limit, job.active_deadline_seconds) == (9, 60)
    assert job.shape == observe_job(make_child().obj()).shape != ""


def test_a_job_with_hardly_anything_is_read() -> None:
    job = observe_job({"metadata": {"uid": "x", "resourceVersion": "1"}})
    assert (job.owner_uid, job.nodes, job.suspended, job.has_ended) == (None, 1, False, False)
    assert (job.shape, job.backoff_limit, job.active_deadline_seconds) == ("", 6, None)


def test_a_job_of_a_queue() -> None:
    job = observe_job(make_child(make_job().queue()).obj())
    assert job.queue == "research"
    assert job.suspended


def test_a_complete_job() -> None:
    job = observe_job(make_child().complete(at(9)).obj())
    assert job.has_ended
    assert job.complete
    assert job.failed_reason is None
    assert job.ended_at == at(9)


@pytest.mark.parametrize("type_", ["Failed", "FailureTarget"])
def test_a_job_that_is_sure_to_fail_has_failed(type_: str) -> None:
    job = observe_job(make_child().fails(at(9), "BackoffLimitExceeded", "too often", type_).obj())
    assert job.has_ended
    assert not job.complete
    assert (job.failed_reason, job.failed_message, job.ended_at) == ("BackoffLimitExceeded", "too often", at(9))


def test_the_final_condition_counts_more_than_the_announcement() -> None:
    child = make_child().fails(at(5), "PodFailurePolicy", "announced", "FailureTarget")
    job = observe_job(child.fails(at(9), "PodFailurePolicy", "final").obj())
    assert (job.failed_message, job.ended_at) == ("final", at(9))


def test_a_failure_without_a_reason_has_one_all_the_same() -> None:
    assert observe_job(make_child().fails(NOW, reason="").obj()).failed_reason == "JobFailed"


@pytest.mark.parametrize(
    ("reason", "seconds", "found"),
    [
        ("BackoffLimitExceeded", 70, None),
        ("BackoffLimitExceeded", 50, "BackoffLimitExceeded"),
        ("PodFailurePolicy", 70, "PodFailurePolicy"),
    ],
)
def test_that_pods_are_killed_for_a_jobs_deletion_is_no_failure(reason: str, seconds: int, found: str | None) -> None:
    child = make_child().metadata(deletionTimestamp=text_of(at(60))).fails(at(seconds), reason)
    assert observe_job(child.obj()).failed_reason == found


def test_a_condition_that_is_not_true_says_nothing() -> None:
    body = make_child().obj()
    body["status"]["conditions"] = [{"type": "Complete", "status": "False"}, {"type": "Failed", "status": "Unknown"}]
    assert not observe_job(body).has_ended


def test_only_the_controller_is_the_owner() -> None:
    body = make_child().obj()
    body["metadata"]["ownerReferences"] = [{"uid": "a"}, {"uid": "b", "controller": True}]
    assert observe_job(body).owner_uid == "b"


def test_a_pod_that_was_just_created() -> None:
    pod = observe_pod(make_pod().obj())
    assert (pod.name, pod.job_uid, pod.phase) == ("router-0-0", CHILD_UID, "Pending")
    assert pod.is_living
    assert (pod.scheduled, pod.scheduled_at, pod.started, pod.exit_code) == (None, None, None, None)


def test_a_pod_without_a_node_has_the_schedulers_words() -> None:
    pod = observe_pod(make_pod().unschedulable("0/3 nodes are available").obj())
    assert (pod.scheduled, pod.scheduled_at) == (False, None)
    assert pod.scheduling_message == "0/3 nodes are available"


def test_a_pod_knows_since_when_it_has_a_node_and_a_container() -> None:
    pod = observe_pod(make_pod().scheduled(at(3)).running(at(7)).obj())
    assert (pod.scheduled, pod.scheduled_at, pod.started) == (True, at(3), at(7))


def test_the_container_that_counts_is_the_trainers_though_a_mesh_runs_beside_it() -> None:
    pod = observe_pod(make_pod().failed(11, word="said", since=at(4)).obj())
    assert (pod.exit_code, pod.terminated_reason, pod.termination_message) == (11, "Error", "said")
    assert pod.started == at(4)
    assert pod.has_ended
    assert not pod.is_living


@pytest.mark.parametrize("zero", ["1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "1754-08-30T22:43:41Z"])
def test_a_container_that_never_started_did_not_start_at_the_beginning_of_its_runtimes_time(zero: str) -> None:
    body = make_pod().failed(128, "StartError", "no driver", since=at(9)).obj()
    terminated = body["status"]["containerStatuses"][1]["state"]["terminated"]
    terminated["startedAt"] = zero
    assert (observe_pod(body).started, observe_pod(body).trained_until) == (None, at(9))


WAITS, FAILED, DONE, RUNS = (
    {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
    {"terminated": {"exitCode": 1, "reason": "Error", "message": "denied"}},
    {"terminated": {"exitCode": 0, "reason": "Completed"}},
    {"running": {}},
)


def test_of_other_containers_those_that_wait_or_have_failed_are_read_in_the_order_of_their_start() -> None:
    pod = make_pod().before("done", DONE).before("agent", FAILED).before("late", WAITS).beside("mesh", WAITS)
    agent, late, mesh = observe_pod(pod.obj()).others_troubled
    assert (agent.name, agent.exit_code, agent.termination_message, agent.waiting_reason) == ("agent", 1, "denied", "")
    assert (late.name, late.image, late.waiting_reason) == ("late", "registry.example/late:1", "ErrImagePull")
    assert (mesh.name, mesh.waiting_message, mesh.exit_code) == ("mesh", "not found", None)


def test_of_a_native_sidecar_that_is_started_again_the_last_try_is_read() -> None:
    crashes = {"waiting": {"reason": "CrashLoopBackOff"}}
    first = make_pod().before("mesh", crashes, FAILED, "Always").before("well", RUNS, FAILED, "Always", started=True)
    pod = (
        first.before("new", RUNS, None, "Always").before("again", RUNS, FAILED, "Always").before("plain", RUNS, FAILED)
    )
    mesh, again = observe_pod(pod.obj()).others_troubled
    assert (mesh.name, mesh.exit_code, mesh.is_sidecar) == ("mesh", 1, True)
    assert (again.name, again.exit_code, again.waiting_reason) == ("again", 1, "")


def test_init_containers_that_run_hold_no_pod() -> None:
    pod = observe_pod(make_pod().before("mesh", RUNS, restarts="Always").beside("proxy", RUNS).obj())
    assert pod.others_running == ("proxy",)


def test_a_pod_that_waits_says_why() -> None:
    pod = observe_pod(make_pod().waiting("ImagePullBackOff", "back-off").obj())
    assert (pod.waiting_reason, pod.waiting_message) == ("ImagePullBackOff", "back-off")


def test_a_pod_that_is_being_deleted_is_not_living_and_has_not_ended() -> None:
    pod = observe_pod(make_pod().running().metadata(**DELETED).obj())
    assert not pod.is_living
    assert not pod.has_ended


def test_an_eviction_has_the_kubelets_words() -> None:
    pod = observe_pod(make_pod().evicted("Usage exceeds the limit").obj())
    assert (pod.pod_reason, pod.pod_message, pod.disrupted) == ("Evicted", "Usage exceeds the limit", False)


def test_a_disruption_is_noted() -> None:
    pod = observe_pod(make_pod().disrupted("Evicted").obj())
    assert pod.disrupted
    assert pod.pod_reason == "Evicted"
