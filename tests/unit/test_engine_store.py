"""The store keeps the newest state of each object, whatever order it is told in, and forgets what is gone."""

from __future__ import annotations

import pytest

from finetune_api.v1alpha1.status import Phase
from finetune_operator.engine.store import Key, Store
from finetune_operator.metrics.figures import Figures, figures_of
from plan_builders import (
    CHILD_UID,
    JOB_UID,
    KEY,
    at,
    make_child,
    make_job,
    make_pod,
    make_progress,
    plan_of,
)
from status_samples import full_status


def store_with_everything() -> Store:
    store = Store()
    store.put_fine_tune_job(make_job().obj())
    store.put_job(make_child().obj())
    store.put_pod(make_pod().running().obj())
    return store


def ended(phase: Phase = Phase.COMPLETE) -> dict[str, object]:
    return full_status().model_copy(update={"phase": phase}).to_json()


def test_a_snapshot_has_everything_known_of_a_job() -> None:
    snapshot = store_with_everything().snapshot(KEY)
    assert snapshot is not None
    assert snapshot.child is not None
    assert (snapshot.job.uid, snapshot.child.uid, [pod.name for pod in snapshot.pods]) == (
        JOB_UID,
        CHILD_UID,
        ["router-0-0"],
    )
    assert snapshot.job.spec == make_job().obj()["spec"]


def test_what_is_not_known_has_no_snapshot() -> None:
    store = Store()
    assert store.snapshot(KEY) is None
    store.put_job(make_child().obj())
    assert store.snapshot(KEY) is None


def test_news_is_told_and_a_repetition_is_none() -> None:
    store = Store()
    for put, body in (
        (store.put_fine_tune_job, make_job().obj()),
        (store.put_job, make_child().obj()),
        (store.put_pod, make_pod().obj()),
    ):
        assert put(body) == KEY
        assert put(body) is None


def test_an_older_state_never_replaces_a_newer_one() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().suspended().metadata(resourceVersion="100").obj())
    assert store.put_fine_tune_job(make_job().metadata(resourceVersion="99").obj()) is None
    store.put_job(make_child().suspended().metadata(resourceVersion="1000").obj())
    assert store.put_job(make_child().metadata(resourceVersion="999").obj()) is None
    store.put_pod(make_pod().running().metadata(resourceVersion="100").obj())
    assert store.put_pod(make_pod().metadata(resourceVersion="99").obj()) is None
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.child is not None
    assert snapshot.job.spec["suspend"] is True
    assert snapshot.child.suspended
    assert snapshot.pods[0].phase == "Running"


def test_a_state_that_reads_otherwise_under_another_crd_is_news() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().spec(fromTheFuture=1).obj())
    assert not store.knows_fine_tune_job(make_job().obj())
    assert store.put_fine_tune_job(make_job().obj()) == KEY
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert "fromTheFuture" not in snapshot.job.spec


def test_a_late_farewell_does_not_drop_a_successor_under_the_same_name() -> None:
    store = store_with_everything()
    assert not store.drop_fine_tune_job(KEY, "an earlier uid")
    store.drop_job(KEY, "an earlier uid")
    store.drop_pod(KEY, "router-0-0", "an earlier uid")
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.child is not None
    assert len(snapshot.pods) == 1


def test_what_is_gone_is_forgotten() -> None:
    store = store_with_everything()
    store.put_progress(KEY, make_progress(5))
    store.drop_pod(KEY, "router-0-0", "pod-uid-0")
    store.drop_job(KEY, CHILD_UID)
    assert store.drop_fine_tune_job(KEY, JOB_UID)
    assert (len(store), store.uids(), store.child_uids(), store.pod_uids()) == (0, {}, {}, {})
    assert store.progress(KEY) is None
    store.put_fine_tune_job(make_job().metadata(uid="another", resourceVersion="99").obj())
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.progress is None


def test_a_successor_starts_without_what_was_said_of_its_predecessor() -> None:
    store = store_with_everything()
    store.put_progress(KEY, make_progress(5))
    store.put_fine_tune_job(make_job().metadata(uid="another", resourceVersion="99").obj())
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.progress is None


def test_the_answer_to_a_write_does_not_bring_back_what_was_dropped_meanwhile() -> None:
    store = Store()
    store.update_fine_tune_job(make_job().obj(), {})
    assert store.snapshot(KEY) is None
    store.put_fine_tune_job(make_job().metadata(uid="another", resourceVersion="5").obj())
    store.update_fine_tune_job(make_job().metadata(resourceVersion="9").obj(), {})
    assert store.uids() == {KEY: "another"}


def test_what_the_api_server_does_not_keep_of_a_status_is_kept_here_until_the_next_write() -> None:
    def status() -> object:
        snapshot = store.snapshot(KEY)
        return snapshot and snapshot.job.status

    store = Store()
    store.put_fine_tune_job(make_job().obj())
    one = make_job().status({"restarts": 1}).metadata(resourceVersion="11")
    store.update_fine_tune_job(one.obj(), {"restarts": 1, "new": "x"})
    assert status() == {"restarts": 1, "new": "x"}
    store.put_fine_tune_job(make_job().status({"restarts": 2}).metadata(resourceVersion="12").obj())
    assert status() == {"restarts": 2, "new": "x"}
    store.update_fine_tune_job(make_job().status({"restarts": 3}).metadata(resourceVersion="13").obj(), {"restarts": 3})
    assert status() == {"restarts": 3}
    store.update_fine_tune_job(make_job().metadata(resourceVersion="14").obj(), {"new": "x"})
    store.put_fine_tune_job(make_job().metadata(uid="another", resourceVersion="15").obj())
    assert status() == {}


def test_an_end_that_is_not_told_yet_outlives_its_job() -> None:
    store = Store()
    store.put_fine_tune_job(make_job().obj())
    store.put_job(make_child().complete().obj())
    for _ in range(2):
        store.drop_job(KEY, CHILD_UID)
        snapshot = store.snapshot(KEY)
        assert snapshot is not None
        assert snapshot.child is not None
        assert snapshot.child.complete
    store.put_fine_tune_job(make_job().status(ended()).metadata(resourceVersion="11").obj())
    assert store.child_uids() == {}


def test_the_end_of_a_job_that_is_told_or_nobodys_does_not_outlive_it() -> None:
    for job, child in (
        (make_job().status(ended(Phase.FAILED)), make_child().fails()),
        (make_job(), make_child()),
        (make_job(), make_child().owned_by("another").complete()),
        (make_job().metadata(uid="another"), make_child().complete()),
    ):
        store = Store()
        store.put_fine_tune_job(job.obj())
        store.put_job(child.obj())
        store.drop_job(KEY, CHILD_UID)
        assert store.child_uids() == {}


def test_a_job_that_is_gone_takes_the_end_that_is_not_told_with_it_and_a_new_job_does() -> None:
    for forget in (
        lambda store: store.drop_fine_tune_job(KEY, JOB_UID),
        lambda store: store.put_fine_tune_job(make_job().metadata(uid="another", resourceVersion="99").obj()),
    ):
        store = Store()
        store.put_fine_tune_job(make_job().obj())
        store.put_job(make_child().complete().obj())
        store.drop_job(KEY, CHILD_UID)
        forget(store)
        assert store.child_uids() == {}
        store.put_job(make_child().metadata(uid="next", resourceVersion="100").obj())
        store.drop_job(KEY, CHILD_UID)
        assert store.child_uids() == {KEY: "next"}


def test_a_pod_that_runs_does_not_outlive_its_end() -> None:
    store = store_with_everything()
    store.put_job(make_child().complete().metadata(resourceVersion="90").obj())
    store.drop_pod(KEY, "router-0-0", "pod-uid-0")
    assert store.pod_uids() == {}


def test_pods_are_in_the_order_of_their_creation_and_only_the_jobs_own() -> None:
    store = store_with_everything()
    store.put_pod(make_pod(2).created(at(1)).obj())
    store.put_pod(make_pod(1).created(at(2)).obj())
    store.put_pod(make_pod(7).of("an earlier Job").failed(1).obj())
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert [pod.name for pod in snapshot.pods] == ["router-0-0", "router-0-2", "router-0-1"]
    assert snapshot.leftover == ""


@pytest.mark.parametrize("owner", ["an earlier Job", None])
def test_a_pod_that_still_works_for_another_job_is_a_leftover(owner: str | None) -> None:
    store = store_with_everything()
    store.put_pod(make_pod(7).of(owner).running().obj())
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.leftover == "router-0-7"


def test_a_pod_without_our_label_is_no_jobs() -> None:
    store = Store()
    body = make_pod().metadata(labels={}).obj()
    assert store.knows_pod(body)
    assert store.put_pod(body) is None
    assert store.pod_uids() == {}


@pytest.mark.security(9)
def test_jobs_of_one_name_in_two_namespaces_are_two() -> None:
    store = store_with_everything()
    store.put_fine_tune_job(make_job().metadata(namespace="team-b", uid="other").obj())
    other = store.snapshot(Key("team-b", KEY.name))
    assert other is not None
    assert (other.child, other.pods) == (None, ())


def test_progress_is_the_newest_report_until_the_job_has_ended() -> None:
    store = store_with_everything()
    assert store.put_progress(KEY, make_progress(5))
    assert store.put_progress(KEY, make_progress(6))
    assert store.progress(KEY) == make_progress(6)
    store.put_fine_tune_job(make_job().metadata(resourceVersion="99").status(ended()).obj())
    assert store.progress(KEY) is None
    assert not store.put_progress(KEY, make_progress(7))
    assert not store.put_progress(Key("team-a", "unknown"), make_progress(7))


@pytest.mark.parametrize(
    ("job", "name", "uid"),
    [("another", "router-0-0", "pod-uid-0"), ("router", "router-0-1", "pod-uid-0"), ("router", "router-0-0", "other")],
)
def test_only_the_very_pod_of_a_job_is_its_pod(job: str, name: str, uid: str) -> None:
    store = store_with_everything()
    assert store.may_report(KEY, "router-0-0", "pod-uid-0")
    assert not store.may_report(Key("team-a", job), name, uid)


def test_of_several_nodes_the_first_alone_speaks_for_a_job() -> None:
    store = store_with_everything()
    store.put_pod(make_pod(1).node(1).running().obj())
    assert store.may_report(KEY, "router-0-0", "pod-uid-0")
    assert not store.may_report(KEY, "router-0-1", "pod-uid-1")


def test_a_pod_with_our_label_but_no_job_of_ours_is_not_the_jobs_pod() -> None:
    store = store_with_everything()
    store.put_pod(make_pod(1).of("a Job of someone").running().obj())
    store.put_pod(make_pod(2).of(None).running().obj())
    assert not store.may_report(KEY, "router-0-1", "pod-uid-1")
    assert not store.may_report(KEY, "router-0-2", "pod-uid-2")
    store.put_job(make_child().owned_by("someone").metadata(resourceVersion="99").obj())
    assert not store.may_report(KEY, "router-0-0", "pod-uid-0")


def test_deletions_are_noted_while_someone_lists() -> None:
    store = store_with_everything()
    store.drop_pod(KEY, "router-0-0", "before")
    with store.noting_deletions() as deleted:
        store.drop_pod(KEY, "router-0-0", "pod-uid-0")
        store.drop_job(KEY, "never seen")
        store.drop_fine_tune_job(KEY, JOB_UID)
    store.drop_job(KEY, "after")
    assert deleted == {"pod-uid-0", "never seen", JOB_UID}


def test_metrics_see_the_newest_report_and_after_the_end_the_status() -> None:
    store = store_with_everything()
    [sample] = store.samples()
    assert (sample.namespace, sample.name, sample.phase) == ("team-a", "router", Phase.PENDING)
    assert (sample.task, sample.model, sample.figures) == ("TextClassification", "file:///models/base", Figures())
    store.put_progress(KEY, make_progress(5))
    assert next(store.samples()).figures == figures_of(make_progress(5), None)
    store.put_fine_tune_job(make_job().metadata(resourceVersion="99").status(ended()).obj())
    [sample] = store.samples()
    assert (sample.phase, sample.strategy) == (Phase.COMPLETE, "Bottleneck")
    assert sample.figures == figures_of(full_status().progress, full_status().result)


@pytest.mark.parametrize(
    "status",
    [
        {"progress": {"step": "many"}},
        {"phase": ["Melting"]},
        {"strategy": None},
        {"startTime": 5, "completionTime": ""},
    ],
)
def test_metrics_survive_a_status_of_another_version(status: dict[str, object]) -> None:
    store = Store()
    store.put_fine_tune_job(make_job().status(status).obj())
    [sample] = store.samples()
    assert (sample.phase, sample.figures, sample.strategy) == (Phase.PENDING, Figures(), "")


def test_the_version_that_is_planned_with_is_the_one_that_was_seen() -> None:
    store = store_with_everything()
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.child is not None
    assert (snapshot.job.resource_version, snapshot.child.resource_version) == (10, 20)


def test_a_status_is_kept_as_it_was_written() -> None:
    status = plan_of(make_job(), make_child(), make_pod().running()).status
    store = Store()
    store.put_fine_tune_job(make_job().status(status).obj())
    snapshot = store.snapshot(KEY)
    assert snapshot is not None
    assert snapshot.job.status == status
