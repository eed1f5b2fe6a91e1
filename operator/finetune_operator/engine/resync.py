"""The resync: lists everything, page by page, and puts right what events have missed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from finetune_operator.cluster.client import FINE_TUNE_JOBS, JOBS, PODS, Cluster, KubernetesObject
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.plan.names import MANAGED_BY, MANAGED_BY_LABEL

OURS = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
_JOBS_IN_A_PAUSE = 20
"""So many jobs are looked at again in the time of a pause."""

Put = Callable[[KubernetesObject], Key | None]

logger = logging.getLogger(__name__)


async def resync(
    cluster: Cluster, store: Store, queue: WorkQueue[Key], grace_seconds: float, pause_seconds: float = 0.0
) -> int:
    """Bring the store to what the API server has now, and queue every FineTuneJob. Raises ClusterError.

    Returns how many objects were news that no watch had brought within the grace: a few changes are always under way
    while listing, and only what stays news tells of a dead watch. A page is ten milliseconds of work, and between two
    of them others have their turn for `pause_seconds`; so they have while the jobs without news are looked at again.
    """
    # Taken before listing: what is created meanwhile is newer than the list and must not be dropped.
    children, pods, jobs = store.child_uids(), store.pod_uids(), store.uids()
    listed_children, listed_pods, listed_jobs = set[str](), set[str](), set[str]()
    news: list[tuple[Put, KubernetesObject]] = []
    missed = 0
    with store.noting_deletions() as deleted:
        for resource, selector, listed, known, put in (
            (JOBS, OURS, listed_children, store.knows_job, store.put_job),
            (PODS, OURS, listed_pods, store.knows_pod, store.put_pod),
            (FINE_TUNE_JOBS, "", listed_jobs, store.knows_fine_tune_job, store.put_fine_tune_job),
        ):
            async for page in cluster.list_pages(resource, selector):
                listed.update(map(_uid, page))
                news += [(put, body) for body in page if not known(body)]
                if not grace_seconds:  # whole objects of thousands are not kept until the end
                    missed += _take(news, deleted, queue)
                await asyncio.sleep(pause_seconds)
        if news:
            await asyncio.sleep(grace_seconds)
        missed += _take(news, deleted, queue)
    for key, uid in children.items():
        if uid not in listed_children:
            store.drop_job(key, uid)
            queue.add(key)
    for (key, name), uid in pods.items():
        if uid not in listed_pods:
            store.drop_pod(key, name, uid)
            queue.add(key)
    for key, uid in jobs.items():
        if uid not in listed_jobs and store.drop_fine_tune_job(key, uid):
            queue.forget(key)
    for number, key in enumerate(store.uids()):
        queue.add_after(key, number * pause_seconds / _JOBS_IN_A_PAUSE)
    logger.info("resync: %d FineTuneJobs, %d Jobs, %d pods", len(listed_jobs), len(listed_children), len(listed_pods))
    return missed


def _take(news: list[tuple[Put, KubernetesObject]], deleted: set[str], queue: WorkQueue[Key]) -> int:
    """Put the news into the store, and queue their jobs at once; returns how many still are news."""
    keys = [key for put, body in news if _uid(body) not in deleted and (key := put(body)) is not None]
    news.clear()
    for key in keys:
        queue.add(key)
    return len(keys)


def _uid(body: KubernetesObject) -> str:
    return str(body["metadata"]["uid"])
