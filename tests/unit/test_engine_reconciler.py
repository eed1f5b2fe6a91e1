"""One reconcile brings one job to what is planned; judged by the state of the cluster afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_operator.cluster.client import (
    CLAIMS,
    EVENTS,
    FINE_TUNE_JOBS,
    JOBS,
    PODS,
    SERVICES,
    ClusterError,
    Conflict,
    KubernetesObject,
    Refused,
    Resource,
    Unreached,
    WebhookFailed,
)
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.resync import resync
from finetune_operator.engine.store import Store
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.plan.plan import Plan
from finetune_operator.plan.snapshot import Snapshot
from memory_cluster import MemoryCluster, Object
from plan_builders import (
    KEY,
    NOW,
    SETTINGS,
    PodBuilder,
    at,
    conditions_of,
    make_job,
    make_pod,
    make_progress,
    message_of,
    text_of,
)


@dataclass
class Bed:
    """A cluster, and an operator that knows of it only what it is shown."""

    seconds: float = 0
    applied: list[tuple[Snapshot, Plan]] = field(default_factory=list)
    refusing: str = ""
    """A resource whose creation is refused."""
    failed: int = 0
    """How often in a row the key has failed before."""
    asked: list[str] = field(default_factory=list)
    """What was to be created."""
    refusal: ClusterError = field(default_factory=lambda: Refused("forbidden: exceeded quota: gpus"))

    def __post_init__(self) -> None:
        self.cluster = MemoryCluster(lambda: at(self.seconds))
        self.store = Store()
        self.reconciler = Reconciler(
            self.store,
            self,
            lambda: SETTINGS,
            lambda: at(self.seconds),
            applied=lambda *told: self.applied.append(told),
            failures=lambda key: self.failed,
        )
        self.list_pages, self.get = self.cluster.list_pages, self.cluster.get
        self.merge_patch, self.delete = self.cluster.merge_patch, self.cluster.delete

    async def create(self, resource: Resource, namespace: str, body: KubernetesObject) -> KubernetesObject:
        self.asked.append(resource.plural)
        if resource.plural == self.refusing:
            raise self.refusal
        return await self.cluster.create(resource, namespace, body)

    def submit(self, **spec: Any) -> Object:
        body = make_job().spec(**spec).obj()
        return self.cluster.add(
            FINE_TUNE_JOBS, {"metadata": {"name": KEY.name, "namespace": KEY.namespace}, "spec": body["spec"]}
        )

    def edit(self, resource: Resource, **parts: Mapping[str, Any]) -> None:
        """Change parts of the object that has the job's name."""

        def change(new: Object) -> None:
            for part, values in parts.items():
                new.setdefault(part, {}).update(values)

        self.cluster.change(resource, self.found(resource), change)

    def add_pod(self, pod: PodBuilder) -> None:
        body = pod.of(self.found(JOBS)["metadata"]["uid"]).obj()
        kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
        self.cluster.add(PODS, {**body, "metadata": {key: body["metadata"][key] for key in kept}})

    def look(self) -> None:
        """The operator sees everything, as after a resync."""
        asyncio.run(resync(self, self.store, WorkQueue(), 0))

    def reconcile(self, *, looking: bool = True) -> timedelta | None:
        if looking:
            self.look()
        return asyncio.run(self.reconciler.reconcile(KEY))

    def found(self, resource: Resource) -> Object:
        body = self.cluster.find(resource, KEY.namespace, KEY.name)
        assert body is not None
        return body

    @property
    def status(self) -> Object:
        return dict(self.found(FINE_TUNE_JOBS)["status"])

    @property
    def events(self) -> list[str]:
        return [str(event["reason"]) for event in self.cluster.objects(EVENTS)]


def ended(type_: str, **more: Any) -> dict[str, Any]:
    condition = {"type": type_, "status": "True", "reason": "BackoffLimitExceeded", "message": "said"}
    return {"conditions": [{**condition, "lastTransitionTime": text_of(NOW)}], **more}


def test_a_new_job_takes_two_writes_and_then_rests() -> None:
    bed = Bed()
    bed.submit()
    before = bed.cluster.version
    bed.reconcile()
    assert bed.cluster.version - before == 2
    assert bed.status["phase"] == "Pending"
    owner = bed.found(JOBS)["metadata"]["ownerReferences"][0]
    assert owner["uid"] == bed.found(FINE_TUNE_JOBS)["metadata"]["uid"]
    for _ in range(3):
        bed.reconcile()
        bed.reconcile(looking=False)
    assert bed.cluster.version - before == 2


def test_what_is_not_known_is_nothing_to_do() -> None:
    assert Bed().reconcile() is None


def test_each_write_is_known_at_once_so_that_nothing_is_done_twice() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    before = bed.cluster.version
    for _ in range(3):
        bed.reconcile(looking=False)
    assert bed.cluster.version == before


def test_a_job_that_is_there_already_is_adopted_and_judged_before_anything_is_said() -> None:
    bed = Bed()
    bed.submit()
    bed.look()
    blind = Store()
    blind.put_fine_tune_job(bed.found(FINE_TUNE_JOBS))
    bed.reconcile()
    bed.edit(JOBS, status=ended("Complete"))
    bed.seconds = 60
    # Another replica that has seen neither the Job nor the status.
    other = Reconciler(blind, bed, lambda: SETTINGS, lambda: at(60))
    with pytest.raises(Conflict):
        asyncio.run(other.reconcile(KEY))
    asyncio.run(other.reconcile(KEY))
    assert bed.status["phase"] == "Complete"
    assert len(bed.cluster.objects(JOBS)) == 1


def test_a_squatted_name_is_left_alone_and_taken_when_it_is_free() -> None:
    bed = Bed()
    foreign = bed.cluster.add(JOBS, {"metadata": {"name": KEY.name, "namespace": KEY.namespace}, "spec": {"x": 1}})
    bed.submit()
    assert bed.reconcile() == timedelta(minutes=1)
    assert conditions_of(bed.status)["Reconciling"] == ("True", "ChildNameTaken")
    assert bed.found(JOBS) == foreign
    bed.cluster.remove(JOBS, bed.found(JOBS))
    bed.reconcile(looking=False)  # no watch tells of a Job without our label
    assert bed.found(JOBS)["metadata"]["ownerReferences"]
    assert conditions_of(bed.status)["Reconciling"] == ("True", "PodsPending")


def test_what_the_api_server_refuses_stands_in_the_status_until_it_is_let_through() -> None:
    bed = Bed(refusing="jobs")
    bed.submit()
    for _ in range(2):
        with pytest.raises(Refused):
            bed.reconcile()
    assert conditions_of(bed.status)["Reconciling"] == ("True", "ChildRefused")
    assert bed.cluster.objects(JOBS) == []
    before = bed.cluster.version
    with pytest.raises(Refused):
        bed.reconcile()
    assert bed.cluster.version == before  # said once
    bed.refusing = ""
    bed.reconcile()
    assert conditions_of(bed.status)["Reconciling"] == ("True", "PodsPending")


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (WebhookFailed('Internal error occurred: failed calling webhook "mjob.kb.io"'), 0),
        (ClusterError("Internal error occurred: no more disk"), 2),
    ],
)
def test_what_keeps_a_job_from_being_made_stands_in_the_status_though_it_may_pass(
    error: ClusterError, failed: int
) -> None:
    bed = Bed(refusing="jobs", refusal=error, failed=failed)
    bed.submit()
    with pytest.raises(ClusterError):
        bed.reconcile()
    assert conditions_of(bed.status)["Reconciling"] == ("True", "ChildRefused")
    assert message_of(bed.status, "Reconciling") == f"what the job needs could not be made yet: {error}"
    bed.refusing = ""
    bed.reconcile()
    assert conditions_of(bed.status)["Reconciling"] == ("True", "PodsPending")


@pytest.mark.parametrize(
    ("error", "failed"),
    [(Unreached("Too many requests, please try again later."), 9), (ClusterError("Internal error occurred"), 1)],
)
def test_what_passes_by_itself_costs_no_write(error: ClusterError, failed: int) -> None:
    bed = Bed(refusing="jobs", refusal=error, failed=failed)
    bed.submit()
    before = bed.cluster.version
    with pytest.raises(type(error)):
        bed.reconcile()
    assert bed.cluster.version == before


CREATED_CLAIM = {"uri": "pvc://models/router", "createClaim": {"size": "1Gi"}}


def test_a_claim_whose_creation_crosses_another_under_one_quota_is_made_at_the_next_try() -> None:
    """Kubernetes answers 409 then, as it does where the claim is there already (kubernetes#67761)."""
    words = 'Operation cannot be fulfilled on resourcequotas "team": the object has been modified'
    bed = Bed(refusing="persistentvolumeclaims", refusal=Conflict(words))
    bed.submit(output=CREATED_CLAIM)
    with pytest.raises(Conflict):
        bed.reconcile()
    assert bed.cluster.objects(JOBS) == []
    bed.refusing = ""
    bed.reconcile()
    assert len(bed.cluster.objects(CLAIMS)) == len(bed.cluster.objects(JOBS)) == 1


def test_a_job_that_may_not_be_suspended_is_not_called_suspended_until_it_is() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    bed.add_pod(make_pod().running())
    bed.reconcile()
    bed.edit(FINE_TUNE_JOBS, spec={"suspend": True})
    works = bed.merge_patch

    async def refuses(resource: Resource, *arguments: Any) -> KubernetesObject:
        if resource is JOBS:
            raise Refused("a Job needs the label team")
        return await works(resource, *arguments)

    bed.merge_patch = refuses  # type: ignore[method-assign,assignment]
    with pytest.raises(Refused):
        bed.reconcile()
    assert bed.status["phase"] == "Running"
    assert "it could not be suspended yet: a Job needs the label team" in message_of(bed.status, "Running")
    bed.merge_patch = works  # type: ignore[method-assign]
    bed.reconcile(looking=False)
    assert bed.status["phase"] == "Suspended"
    assert bed.events == ["Running", "Suspended"]


MISSED = make_pod().unschedulable('0/3 nodes are available: persistentvolumeclaim "models" not found.')


def test_a_service_and_a_claim_that_someone_deleted_are_made_again_for_pods_that_wait() -> None:
    bed = Bed()
    bed.submit(output=CREATED_CLAIM, resources={"nodes": 2})
    bed.reconcile()
    bed.add_pod(MISSED)
    made = [bed.cluster.objects(resource)[0] for resource in (SERVICES, CLAIMS)]
    for resource, body in zip((SERVICES, CLAIMS), made, strict=True):
        bed.cluster.remove(resource, body)
    assert bed.reconcile() == timedelta(seconds=60)
    bed.seconds = 60
    bed.reconcile()
    again = [bed.cluster.objects(resource)[0] for resource in (SERVICES, CLAIMS)]
    assert [body["metadata"]["name"] for body in again] == [body["metadata"]["name"] for body in made]
    before = bed.cluster.version
    bed.reconcile()
    assert bed.cluster.version == before


def test_a_job_that_only_waits_asks_the_cluster_for_nothing() -> None:
    bed = Bed()
    bed.submit(output=CREATED_CLAIM, resources={"nodes": 2})
    bed.reconcile()
    bed.add_pod(make_pod().unschedulable("0/3 nodes are available: 3 Insufficient cpu."))
    bed.asked.clear()
    bed.seconds = 120
    for _ in range(5):
        bed.reconcile()
    assert bed.asked == ["services"]  # once for these pods


def test_a_claim_that_is_not_made_again_stands_in_the_status_and_holds_up_no_change() -> None:
    bed = Bed()
    bed.submit(output=CREATED_CLAIM)
    bed.reconcile()
    bed.add_pod(MISSED)
    bed.cluster.remove(CLAIMS, bed.cluster.objects(CLAIMS)[0])
    bed.refusing, bed.seconds = "persistentvolumeclaims", 60
    bed.edit(FINE_TUNE_JOBS, spec={"backoffLimit": 9})
    with pytest.raises(Refused):
        bed.reconcile()
    assert bed.found(JOBS)["spec"]["backoffLimit"] == 9
    assert "what else it needs could not be done yet: forbidden" in message_of(bed.status, "Reconciling")


def test_a_service_that_a_full_quota_refuses_though_it_is_there_is_nothing_to_tell_of() -> None:
    bed = Bed()
    bed.submit(resources={"nodes": 2})
    bed.reconcile()
    bed.add_pod(make_pod())
    bed.refusing, bed.seconds = "services", 60
    bed.reconcile()
    assert "quota" not in message_of(bed.status, "Reconciling")


def test_an_output_claim_that_is_there_already_is_used_as_it_is() -> None:
    bed = Bed()
    claim = bed.cluster.add(CLAIMS, {"metadata": {"name": "models", "namespace": KEY.namespace}, "spec": {"mine": 1}})
    bed.submit(output={"uri": "pvc://models/router", "createClaim": {"size": "1Gi"}})
    bed.reconcile()
    assert bed.cluster.objects(CLAIMS) == [claim]
    assert len(bed.cluster.objects(JOBS)) == 1


def test_suspending_and_resuming_reaches_the_job() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    for value in (True, False):
        bed.edit(FINE_TUNE_JOBS, spec={"suspend": value})
        bed.reconcile()
        assert bed.found(JOBS)["spec"]["suspend"] is value
    assert bed.events == ["Suspended", "Resumed"]


def test_a_switch_meant_for_one_job_never_hits_its_successor() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    bed.edit(FINE_TUNE_JOBS, spec={"suspend": True})
    bed.look()
    earlier = bed.found(JOBS)
    bed.cluster.remove(JOBS, earlier)
    metadata = {"name": KEY.name, "namespace": KEY.namespace}
    bed.cluster.add(JOBS, {"metadata": metadata, "spec": {"suspend": False}})
    with pytest.raises(Conflict):
        bed.reconcile(looking=False)
    assert bed.found(JOBS)["spec"]["suspend"] is False


def test_a_job_of_a_queue_is_deleted_to_be_suspended_and_goes_after_its_pods() -> None:
    bed = Bed()
    bed.submit(queueName="research")
    bed.reconcile()
    bed.add_pod(make_pod().running())
    bed.edit(FINE_TUNE_JOBS, spec={"suspend": True})
    bed.reconcile()
    bed.cluster.collect_garbage()
    assert "deletionTimestamp" in bed.found(JOBS)["metadata"]
    bed.reconcile()
    bed.cluster.remove(PODS, bed.cluster.objects(PODS)[0])
    bed.cluster.collect_garbage()
    bed.reconcile()
    assert bed.cluster.objects(JOBS) == []
    assert bed.status["phase"] == "Suspended"
    bed.edit(FINE_TUNE_JOBS, spec={"suspend": False})
    bed.reconcile()
    assert bed.found(JOBS)["spec"]["suspend"] is True
    assert bed.status["phase"] == "Queued"


def test_a_job_that_has_ended_meanwhile_is_not_deleted_with_its_last_words() -> None:
    bed = Bed()
    bed.submit(queueName="research")
    bed.reconcile()
    bed.edit(FINE_TUNE_JOBS, spec={"suspend": True})
    bed.look()
    bed.edit(JOBS, status=ended("Complete"))
    with pytest.raises(Conflict):
        bed.reconcile(looking=False)
    bed.add_pod(make_pod().succeeded())
    bed.reconcile()
    assert "deletionTimestamp" not in bed.found(JOBS)["metadata"]
    assert bed.status["phase"] == "Complete"


def test_an_end_is_not_written_without_its_cause_though_no_watch_told_of_the_pod() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    bed.edit(JOBS, status=ended("Failed"))
    bed.look()
    bed.add_pod(make_pod().failed(11))
    assert bed.reconcile(looking=False) == timedelta(seconds=10)
    bed.seconds = 10
    bed.reconcile(looking=False)
    assert conditions_of(bed.status)["Failed"] == ("True", "DataInvalid")


def test_an_end_without_pods_is_written_all_the_same_and_looked_into_once() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    bed.edit(JOBS, status=ended("Failed"))
    bed.seconds = 10
    bed.reconcile()
    assert conditions_of(bed.status)["Failed"] == ("True", "BackoffLimitExceeded")
    bed.list_pages = None  # type: ignore[assignment]  # asking again would fail
    bed.reconcile(looking=False)


def test_a_plan_of_a_stale_status_writes_nothing_and_the_next_one_is_fresh() -> None:
    bed = Bed()
    bed.submit()
    bed.look()
    bed.edit(FINE_TUNE_JOBS, status={"phase": "Failed", **ended("Failed")})
    with pytest.raises(Conflict):
        bed.reconcile(looking=False)
    assert bed.status["phase"] == "Failed"
    bed.reconcile(looking=False)
    assert bed.status["phase"] == "Failed"


def test_a_job_that_is_gone_when_its_status_is_written_is_forgotten() -> None:
    bed = Bed()
    bed.submit()
    bed.look()
    bed.cluster.remove(FINE_TUNE_JOBS, bed.found(FINE_TUNE_JOBS))
    assert bed.reconcile(looking=False) is None
    assert len(bed.store) == 0


def test_the_status_of_one_job_never_goes_to_its_successor() -> None:
    bed = Bed()
    bed.submit()
    bed.look()
    bed.cluster.remove(FINE_TUNE_JOBS, bed.found(FINE_TUNE_JOBS))
    bed.submit()
    with pytest.raises(Conflict):
        bed.reconcile(looking=False)
    assert "status" not in bed.found(FINE_TUNE_JOBS)


def test_a_field_that_no_longer_holds_leaves_the_stored_status() -> None:
    bed = Bed()
    bed.submit(task="Poetry")
    bed.reconcile()
    assert "completionTime" in bed.status
    bed.edit(FINE_TUNE_JOBS, spec={"task": "TextClassification"})
    bed.reconcile()
    assert "completionTime" not in bed.status
    assert bed.status["phase"] == "Pending"


def test_a_job_whose_time_is_over_is_deleted() -> None:
    bed = Bed()
    bed.submit(ttlSecondsAfterFinished=60)
    bed.reconcile()
    bed.add_pod(make_pod().succeeded())
    bed.edit(JOBS, status=ended("Complete"))
    bed.reconcile()
    assert bed.reconcile() == timedelta(seconds=60)
    bed.seconds = 60
    bed.reconcile()
    assert bed.cluster.objects(FINE_TUNE_JOBS) == []
    assert bed.reconcile() is None


def test_a_job_that_someone_else_deleted_first_is_deleted_too() -> None:
    bed = Bed()
    bed.submit(task="Poetry", ttlSecondsAfterFinished=0)
    bed.reconcile()
    bed.look()
    bed.cluster.remove(FINE_TUNE_JOBS, bed.found(FINE_TUNE_JOBS))
    assert bed.reconcile(looking=False) is None
    assert len(bed.store) == 0


def test_metrics_are_told_of_every_written_status_and_of_no_other() -> None:
    bed = Bed()
    bed.submit()
    for _ in range(3):
        bed.reconcile()
    assert [plan.status["phase"] for _, plan in bed.applied if plan.status] == ["Pending"]
    bed.edit(FINE_TUNE_JOBS, metadata={"labels": {"x": "y"}})
    bed.reconcile()
    assert len(bed.applied) == 1


def test_events_are_posted_once_and_none_is_missed_by_a_failed_post() -> None:
    bed = Bed(refusing="events")
    bed.submit()
    bed.reconcile()
    bed.add_pod(make_pod().running())
    bed.reconcile()
    assert bed.status["phase"] == "Running"  # the status does not depend on it
    assert bed.events == []
    bed.refusing = ""
    bed.edit(JOBS, status=ended("Complete"))
    bed.seconds = 20
    bed.reconcile()
    bed.reconcile()
    assert bed.events == ["Complete"]


def test_progress_is_written_with_the_time_of_its_writing() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    bed.add_pod(make_pod().running())
    bed.look()
    bed.store.put_progress(KEY, make_progress(5))
    bed.seconds = 3
    bed.reconcile(looking=False)
    assert (bed.status["progress"]["step"], bed.status["progress"]["updated"]) == (5, "2026-01-01T12:00:03Z")
    bed.store.put_progress(KEY, make_progress(6))
    bed.seconds = 8
    assert bed.reconcile(looking=False) == timedelta(seconds=10)
    assert bed.status["progress"]["step"] == 5


def wrote_too_much(bed: Bed) -> None:
    """Its last try was evicted for what it wrote, and stopped in time, so that its Job does not count it."""
    bed.submit(backoffLimit=0)
    bed.reconcile()
    bed.add_pod(make_pod().evicted("Usage of EmptyDir volume exceeds the limit", ExitCode.STOPPED))
    bed.add_pod(make_pod(1).running())
    bed.look()


def test_an_end_that_deletes_its_job_is_told_before_its_evidence_goes() -> None:
    bed = Bed()
    wrote_too_much(bed)
    works = bed.merge_patch

    async def fails(*arguments: Any) -> KubernetesObject:
        raise Unreached("etcdserver: request timed out")

    bed.merge_patch = fails  # type: ignore[method-assign]
    with pytest.raises(Unreached):
        bed.reconcile(looking=False)
    bed.cluster.collect_garbage()
    assert len(bed.cluster.objects(PODS)) == 2
    bed.merge_patch = works  # type: ignore[method-assign]
    assert bed.reconcile() == timedelta()
    assert conditions_of(bed.status)["Failed"] == ("True", "StorageFull")
    assert "deletionTimestamp" not in bed.found(JOBS)["metadata"]
    other = replace(bed.reconciler, store=Store())  # the operator is killed there, and another takes over
    bed.store = other.store
    bed.reconciler = other
    bed.reconcile()
    assert "deletionTimestamp" in bed.found(JOBS)["metadata"]
    before = bed.cluster.version
    bed.reconcile()
    assert bed.cluster.version == before


def test_a_job_that_may_not_be_deleted_at_the_end_is_deleted_when_it_may_be() -> None:
    bed = Bed()
    wrote_too_much(bed)
    bed.reconcile()
    works = bed.delete

    async def refuses(*arguments: Any, **named: Any) -> None:
        raise Refused("no Job is deleted here")

    bed.delete = refuses  # type: ignore[method-assign]
    before = bed.cluster.version
    for _ in range(3):
        with pytest.raises(Refused):
            bed.reconcile()
    assert bed.cluster.version == before
    bed.delete = works  # type: ignore[method-assign]
    bed.reconcile()
    assert "deletionTimestamp" in bed.found(JOBS)["metadata"]


def test_a_job_that_has_ended_is_kept_though_what_is_known_of_it_is_older_than_the_status() -> None:
    bed = Bed()
    bed.submit()
    bed.reconcile()
    running = bed.found(JOBS)
    bed.edit(JOBS, status=ended("Failed"))
    bed.add_pod(make_pod().failed(1))
    bed.seconds = 20
    bed.reconcile()
    bed.store = Store()
    bed.reconciler = replace(bed.reconciler, store=bed.store)
    bed.store.put_job(running)
    bed.store.put_fine_tune_job(bed.found(FINE_TUNE_JOBS))
    with pytest.raises(Conflict):
        bed.reconcile(looking=False)
    bed.reconcile(looking=False)
    assert "deletionTimestamp" not in bed.found(JOBS)["metadata"]


def test_under_an_older_crd_pods_that_are_refused_are_told_of_and_nothing_is_written_over_and_over() -> None:
    """The API server drops the field of a status that its CRD does not have."""
    bed = Bed()
    works, written = bed.merge_patch, list[Object]()

    async def prunes(
        resource: Resource, namespace: str, name: str, body: KubernetesObject, subresource: str | None = None
    ) -> KubernetesObject:
        status = {field: value for field, value in body["status"].items() if field != "podsMissingSince"}
        written.append(status)
        return await works(resource, namespace, name, {**body, "status": status}, subresource)

    bed.merge_patch = prunes  # type: ignore[method-assign]
    bed.submit()
    bed.reconcile()
    bed.edit(JOBS, status={"startTime": text_of(NOW)})
    for _ in range(40):
        wait = bed.reconcile()
        bed.seconds += wait.total_seconds() if wait else 60
    assert conditions_of(bed.status)["Reconciling"] == ("True", "PodsRefused")
    assert "podsMissingSince" not in bed.status
    assert len(written) <= 3


def test_a_cluster_that_fails_says_so_and_the_same_key_is_done_again() -> None:
    bed = Bed()
    bed.submit()
    bed.look()
    works = bed.merge_patch

    async def fails(*arguments: Any) -> KubernetesObject:
        raise ClusterError("the connection was reset")

    bed.merge_patch = fails  # type: ignore[method-assign]
    with pytest.raises(ClusterError):
        bed.reconcile(looking=False)
    bed.merge_patch = works  # type: ignore[method-assign]
    bed.reconcile(looking=False)
    assert bed.status["phase"] == "Pending"
    assert len(bed.cluster.objects(JOBS)) == 1
