"""The resync puts right what events have missed, and counts what only it found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from finetune_operator.cluster.client import FINE_TUNE_JOBS, JOBS, PODS, ClusterError, KubernetesObject, Resource
from finetune_operator.engine.resync import resync
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.work_queue import WorkQueue
from memory_cluster import MemoryCluster, Object
from plan_builders import make_child, make_job, make_pod
from virtual_time import START, VirtualClock, run_virtually

GRACE = 5.0


def add_everything(cluster: MemoryCluster, name: str) -> tuple[Object, Object, Object]:
    """A FineTuneJob with its Job and a pod."""
    metadata = {"name": name, "namespace": "team-a"}
    job = cluster.add(FINE_TUNE_JOBS, {"metadata": metadata, "spec": make_job().obj()["spec"]})
    child = make_child().owned_by(job["metadata"]["uid"]).obj()
    labels = {**child["metadata"]["labels"], "finetune-operator.io/job-name": name}
    of_job = {"labels": labels, "ownerReferences": child["metadata"]["ownerReferences"]}
    stored = cluster.add(JOBS, {"metadata": {**metadata, **of_job}, "spec": child["spec"]})
    pod = make_pod().of(stored["metadata"]["uid"]).obj()
    kept = {**metadata, "name": f"{name}-0", "labels": labels, "ownerReferences": pod["metadata"]["ownerReferences"]}
    return job, stored, cluster.add(PODS, {"metadata": kept, "status": pod["status"]})


class Bed:
    """A cluster of 5 jobs, listed in several pages, with something that happens while it is listed."""

    def __init__(self) -> None:
        self.memory = MemoryCluster(lambda: START)
        self.made = [add_everything(self.memory, f"job-{number}") for number in range(5)]
        self.store, self.queue = Store(), WorkQueue[Key]()
        self.meanwhile: Callable[[Resource], None] = lambda resource: None

    async def list_pages(
        self, resource: Resource, label_selector: str = "", namespace: str | None = None
    ) -> AsyncIterator[list[KubernetesObject]]:
        pages = [page async for page in self.memory.list_pages(resource, label_selector, namespace)]
        assert len(pages) > 1
        for page in pages:
            yield page
        self.meanwhile(resource)

    def resync(self, during_grace: Callable[[], None] = lambda: None) -> int:
        async def main(clock: object) -> int:
            asyncio.get_running_loop().call_later(GRACE / 2, during_grace)
            return await resync(self, self.store, self.queue, GRACE)  # type: ignore[arg-type]

        return run_virtually(main)


def test_an_empty_store_is_filled_and_every_job_queued() -> None:
    bed = Bed()
    assert bed.resync() == 15
    assert (len(bed.store), len(bed.store.child_uids()), len(bed.store.pod_uids())) == (5, 5, 5)
    assert len(bed.queue) == 5


def test_when_watches_have_brought_everything_nothing_was_missed() -> None:
    bed = Bed()
    bed.resync()
    assert bed.resync() == 0


def test_what_is_no_news_is_looked_at_again_by_and_by_and_news_at_once() -> None:
    bed = Bed()
    bed.resync()
    bed.memory.change(PODS, bed.made[3][2], lambda new: new["status"].update(phase="Running"))

    async def main(clock: VirtualClock) -> list[tuple[str, float]]:
        queue: WorkQueue[Key] = WorkQueue(clock)
        await resync(bed, bed.store, queue, GRACE, pause_seconds=1)  # type: ignore[arg-type]
        resynced, given = clock(), []
        for _ in range(6):
            key, _ = await queue.get()
            queue.done(key)
            given.append((key.name, round(clock() - resynced, 2)))
        return given

    by_and_by = [(f"job-{number}", round(0.05 * number, 2)) for number in range(5)]
    assert run_virtually(main) == [("job-3", 0.0), *by_and_by]


def test_only_our_own_jobs_and_pods_are_listed() -> None:
    bed = Bed()
    bed.memory.add(JOBS, {"metadata": {"name": "other", "namespace": "team-a", "labels": {"app": "x"}}, "spec": {}})
    bed.resync()
    assert Key("team-a", "other") not in bed.store.child_uids()


def test_what_is_gone_is_dropped() -> None:
    bed = Bed()
    bed.resync()
    for resource, body in zip((FINE_TUNE_JOBS, JOBS, PODS), bed.made[0], strict=True):
        bed.memory.remove(resource, body)
    bed.resync()
    assert (len(bed.store), len(bed.store.child_uids()), len(bed.store.pod_uids())) == (4, 4, 4)


def test_what_has_changed_is_news() -> None:
    bed = Bed()
    bed.resync()
    bed.memory.change(PODS, bed.made[0][2], lambda new: new["status"].update(phase="Running"))
    assert bed.resync() == 1
    snapshot = bed.store.snapshot(Key("team-a", "job-0"))
    assert snapshot is not None
    assert snapshot.pods[0].phase == "Running"


def test_news_that_a_watch_brings_within_the_grace_was_not_missed() -> None:
    bed = Bed()
    bed.resync()
    changed = bed.memory.change(PODS, bed.made[0][2], lambda new: new["status"].update(phase="Running"))
    assert bed.resync(lambda: bed.store.put_pod(changed)) == 0


def test_what_is_deleted_while_listing_is_not_brought_back() -> None:
    bed = Bed()
    job, child, pod = bed.made[0]

    def meanwhile(resource: Resource) -> None:
        if resource == FINE_TUNE_JOBS:
            bed.store.drop_fine_tune_job(Key("team-a", "job-0"), job["metadata"]["uid"])
            bed.store.drop_job(Key("team-a", "job-0"), child["metadata"]["uid"])
            bed.store.drop_pod(Key("team-a", "job-0"), "job-0-0", pod["metadata"]["uid"])

    bed.meanwhile = meanwhile
    bed.resync()
    assert Key("team-a", "job-0") not in bed.store.uids()
    assert (len(bed.store.child_uids()), len(bed.store.pod_uids())) == (4, 4)


def test_what_is_created_while_listing_is_not_dropped() -> None:
    bed = Bed()
    bed.resync()

    def meanwhile(resource: Resource) -> None:
        if resource == FINE_TUNE_JOBS:
            for put, body in zip(
                (bed.store.put_fine_tune_job, bed.store.put_job, bed.store.put_pod),
                add_everything(bed.memory, "late"),
                strict=True,
            ):
                put(body)

    bed.meanwhile = meanwhile
    assert bed.resync() == 0
    assert (len(bed.store), len(bed.store.child_uids()), len(bed.store.pod_uids())) == (6, 6, 6)


def test_a_successor_that_came_while_listing_is_not_dropped_for_its_predecessor() -> None:
    bed = Bed()
    bed.resync()
    key = Key("team-a", "job-0")
    bed.memory.remove(FINE_TUNE_JOBS, bed.made[0][0])

    def meanwhile(resource: Resource) -> None:
        if resource == FINE_TUNE_JOBS:
            metadata = {"name": "job-0", "namespace": "team-a"}
            bed.store.put_fine_tune_job(bed.memory.add(resource, {"metadata": metadata, "spec": {}}))

    bed.meanwhile = meanwhile
    bed.resync()
    assert bed.store.uids()[key] != bed.made[0][0]["metadata"]["uid"]


def test_a_job_that_is_gone_is_not_queued_later_either() -> None:
    bed = Bed()
    bed.resync()
    bed.queue.add_after(Key("team-a", "job-0"), 1)
    bed.memory.remove(FINE_TUNE_JOBS, bed.made[0][0])
    bed.resync()

    async def main(clock: object) -> set[str]:
        given = set()
        for _ in range(5):
            given.add((await bed.queue.get())[0].name)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bed.queue.get(), 10)
        return given

    assert run_virtually(main) == {f"job-{number}" for number in range(5)}  # it was queued before it was gone


def test_a_list_that_fails_changes_nothing() -> None:
    bed = Bed()
    bed.resync()
    bed.memory.remove(FINE_TUNE_JOBS, bed.made[0][0])

    def meanwhile(resource: Resource) -> None:
        if resource == JOBS:
            raise ClusterError("the connection was reset")

    bed.meanwhile = meanwhile
    with pytest.raises(ClusterError):
        bed.resync()
    assert len(bed.store) == 5
