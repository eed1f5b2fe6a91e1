"""The stand-in keeps the API server's rules that the engine builds on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.cluster.client import FINE_TUNE_JOBS, JOBS, PODS, AlreadyThere, Conflict, Gone, Resource
from memory_cluster import MemoryCluster, Object
from virtual_time import START


def metadata(name: str, **more: Any) -> Object:
    return {"name": name, "namespace": "team-a", **more}


@pytest.fixture
def cluster() -> MemoryCluster:
    return MemoryCluster(lambda: START)


def patched(cluster: MemoryCluster, body: Object, part: str | None = None) -> Object:
    return dict(asyncio.run(cluster.merge_patch(FINE_TUNE_JOBS, "team-a", "a", body, part)))


def deleted(cluster: MemoryCluster, resource: Resource, preconditions: dict[str, str], **how: bool) -> None:
    asyncio.run(cluster.delete(resource, "team-a", "a", preconditions, **how))


def test_a_name_is_taken_once(cluster: MemoryCluster) -> None:
    cluster.add(JOBS, {"metadata": metadata("a")})
    with pytest.raises(AlreadyThere):
        cluster.add(JOBS, {"metadata": metadata("a")})
    cluster.add(JOBS, {"metadata": {"name": "a", "namespace": "team-b"}})


def test_spec_and_status_are_changed_apart_and_only_the_spec_is_a_new_generation(cluster: MemoryCluster) -> None:
    first = cluster.add(FINE_TUNE_JOBS, {"metadata": metadata("a"), "spec": {"x": 1, "y": 1}})
    second = patched(cluster, {"status": {"phase": "Running"}, "spec": {"x": 9}}, "status")
    assert (second["spec"], second["status"], second["metadata"]["generation"]) == (
        {"x": 1, "y": 1},
        {"phase": "Running"},
        1,
    )
    third = patched(cluster, {"spec": {"x": None}, "status": {}})
    assert (third["spec"], third["status"]) == ({"y": 1}, {"phase": "Running"})
    assert third["metadata"]["generation"] == 2
    versions = [int(body["metadata"]["resourceVersion"]) for body in (first, second, third)]
    assert versions == sorted(set(versions))


def test_a_patch_that_changes_nothing_is_no_write(cluster: MemoryCluster) -> None:
    cluster.add(FINE_TUNE_JOBS, {"metadata": metadata("a"), "spec": {"x": 1}})
    before = cluster.version
    patched(cluster, {"spec": {"x": 1}})
    assert cluster.version == before


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
def test_preconditions_of_a_patch_and_of_a_deletion_are_kept(cluster: MemoryCluster, field: str) -> None:
    stored = cluster.add(FINE_TUNE_JOBS, {"metadata": metadata("a"), "spec": {}})
    with pytest.raises(Conflict):
        patched(cluster, {"metadata": {field: "0"}, "spec": {"x": 1}})
    with pytest.raises(Conflict):
        deleted(cluster, FINE_TUNE_JOBS, {field: "0"})
    deleted(cluster, FINE_TUNE_JOBS, {field: stored["metadata"][field]})
    with pytest.raises(Gone):
        patched(cluster, {"spec": {}})


def test_deletion_in_the_foreground_waits_for_what_is_owned(cluster: MemoryCluster) -> None:
    job = cluster.add(JOBS, {"metadata": metadata("a")})
    owner = {"uid": job["metadata"]["uid"]}
    pod = cluster.add(PODS, {"metadata": metadata("p", ownerReferences=[owner])})
    deleted(cluster, JOBS, owner, foreground=True)
    cluster.collect_garbage()
    [waiting] = cluster.objects(JOBS)
    [going] = cluster.objects(PODS)
    assert "deletionTimestamp" in waiting["metadata"]
    assert "deletionTimestamp" in going["metadata"]
    cluster.remove(PODS, pod)
    cluster.collect_garbage()
    assert cluster.objects(JOBS) == []


def test_what_an_object_owned_goes_with_it(cluster: MemoryCluster) -> None:
    job = cluster.add(FINE_TUNE_JOBS, {"metadata": metadata("a")})
    cluster.add(JOBS, {"metadata": metadata("a", ownerReferences=[{"uid": job["metadata"]["uid"]}])})
    cluster.add(JOBS, {"metadata": metadata("free")})
    deleted(cluster, FINE_TUNE_JOBS, {})
    cluster.collect_garbage()
    assert [body["metadata"]["name"] for body in cluster.objects(JOBS)] == ["free"]


def test_lists_come_in_pages_by_label_and_namespace(cluster: MemoryCluster) -> None:
    for number in range(5):
        cluster.add(JOBS, {"metadata": metadata(f"job-{number}", labels={"ours": "yes"})})
    cluster.add(JOBS, {"metadata": metadata("other")})
    cluster.add(JOBS, {"metadata": {"name": "far", "namespace": "team-b", "labels": {"ours": "yes"}}})

    async def pages(*arguments: Any) -> list[int]:
        return [len(page) async for page in cluster.list_pages(JOBS, *arguments)]

    assert sum(asyncio.run(pages())) == 7
    assert asyncio.run(pages("ours=yes")) == [2, 2, 2]
    assert asyncio.run(pages("ours=yes", "team-b")) == [1]
    assert asyncio.run(pages("ours=no")) == [0]


def test_watches_are_told_of_every_change() -> None:
    told: list[tuple[str, str]] = []
    cluster = MemoryCluster(lambda: START, lambda resource, type_, body: told.append((resource.plural, type_)))
    stored = cluster.add(PODS, {"metadata": metadata("a"), "status": {}})
    stored = cluster.change(PODS, stored, lambda new: new["status"].update(phase="Running"))
    cluster.remove(PODS, stored)
    assert told == [("pods", "ADDED"), ("pods", "MODIFIED"), ("pods", "DELETED")]
