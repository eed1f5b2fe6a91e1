"""Runs the operator's engine in a played world, in virtual time, with whatever may go wrong on the way.

Everything of the engine is the real one: feed, store, queue, workers, reconciler, resync. Watches and the API server
are played, and they lose, repeat and delay what they are told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from finetune_operator.cluster.client import (
    FINE_TUNE_JOBS,
    JOBS,
    PODS,
    Cluster,
    ClusterError,
    KubernetesObject,
    Refused,
    Resource,
)
from finetune_operator.engine.feed import Feed
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.resync import resync
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.engine.workers import Workers
from finetune_operator.metrics.operator import OperatorMetrics
from memory_cluster import MemoryCluster, Object
from plan_builders import SETTINGS, make_progress
from played_world import NAMESPACE, PlayedWorld
from virtual_time import VirtualClock, run_virtually

TROUBLE_SECONDS = 150
"""When trouble ends, and users settle on what they want."""
REST_SECONDS = 140.0
"""Two resyncs and more."""
_LIMIT_SECONDS = 1500
_RESYNC_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_TICK_SECONDS = 2.0

LOST: tuple[float, ...] = ()
DELIVERIES: tuple[tuple[float, ...], ...] = ((0.01,), LOST, (3.0,), (25.0,), (0.01, 0.01), (0.5, 25.0))
"""After how many seconds an event comes, and how often."""

FINE, FAILS, UNANSWERED, REFUSES, SLOW = "fine", "fails", "unanswered", "refuses", "slow"
ANSWERS = (FINE, FAILS, UNANSWERED, REFUSES, SLOW)
"""What becomes of a request. An unanswered one has its effect, and the operator is not told."""


@dataclass(frozen=True)
class Trouble:
    """What goes wrong, over and over until TROUBLE_SECONDS."""

    deliveries: Sequence[tuple[float, ...]] = ((0.01,),)
    answers: Sequence[str] = (FINE,)
    restarts: Sequence[float] = ()
    changes_of_mind: Sequence[tuple[float, bool]] = ()
    """When everyone sets spec.suspend, and to what."""
    starts_suspended: bool = False


@dataclass(frozen=True)
class Rest:
    """The state that a world came to rest in."""

    objects: dict[Resource, list[Object]]
    jobs_made: dict[str, int]
    """By the FineTuneJob's UID."""
    writes_after_restart: int
    defects: list[str] = field(default_factory=list)
    """What workers met that is no error of the cluster."""


@dataclass
class _UnreliableCluster:
    """A MemoryCluster behind a network."""

    cluster: MemoryCluster
    clock: VirtualClock
    trouble: Trouble
    requests: int = 0

    async def list_pages(
        self, resource: Resource, label_selector: str = "", namespace: str | None = None
    ) -> AsyncIterator[list[KubernetesObject]]:
        async for page in self.cluster.list_pages(resource, label_selector, namespace):
            async with self._network():
                pass
            yield page

    async def create(self, resource: Resource, namespace: str, body: KubernetesObject) -> KubernetesObject:
        async with self._network():
            return await self.cluster.create(resource, namespace, body)

    async def get(self, resource: Resource, namespace: str, name: str) -> KubernetesObject:
        async with self._network():
            return await self.cluster.get(resource, namespace, name)

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, body: KubernetesObject, subresource: str | None = None
    ) -> KubernetesObject:
        async with self._network():
            return await self.cluster.merge_patch(resource, namespace, name, body, subresource)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        preconditions: Mapping[str, str],
        *,
        foreground: bool = False,
    ) -> None:
        async with self._network():
            await self.cluster.delete(resource, namespace, name, preconditions, foreground=foreground)

    @contextlib.asynccontextmanager
    async def _network(self) -> AsyncIterator[None]:
        fate = FINE
        if self.clock() < TROUBLE_SECONDS:
            fate = self.trouble.answers[self.requests % len(self.trouble.answers)]
            self.requests += 1
        await asyncio.sleep(4.0 if fate == SLOW else 0.01)
        if fate == FAILS:
            raise ClusterError("the connection was reset")
        if fate == REFUSES:
            raise Refused("exceeded quota")
        yield
        await asyncio.sleep(4.0 if fate == SLOW else 0.01)
        if fate == UNANSWERED:
            raise ClusterError("the connection was lost")


class _Replica:
    """One process of the operator: what it knows is lost when it ends."""

    def __init__(self, cluster: Cluster, clock: VirtualClock) -> None:
        self.store = Store()
        self.queue: WorkQueue[Key] = WorkQueue(clock, jitter=lambda: 0.5)
        self.feed = Feed(self.store, self.queue)
        self._cluster = cluster
        metrics = OperatorMetrics(CollectorRegistry())
        told, failures = metrics.plan_applied, self.queue.failures
        reconciler = Reconciler(self.store, cluster, lambda: SETTINGS, clock.now, applied=told, failures=failures)
        self._workers = Workers(self.queue, reconciler, metrics, 4)

    async def run(self) -> None:
        """As the operator's App does."""
        while True:
            try:
                await resync(self._cluster, self.store, self.queue, 0)
                break
            except ClusterError:
                await asyncio.sleep(5)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._workers.run())
            while True:
                await asyncio.sleep(_RESYNC_SECONDS)
                with contextlib.suppress(ClusterError):
                    await resync(self._cluster, self.store, self.queue, _GRACE_SECONDS)

    def saw(self, resource: Resource, type_: str, body: Object) -> None:
        """A watch brings something."""
        see = {FINE_TUNE_JOBS: self.feed.fine_tune_job, JOBS: self.feed.job, PODS: self.feed.pod}[resource]
        see(type_, body)

    def was_told(self, key: Key, step: int) -> None:
        """A trainer reports."""
        if self.store.put_progress(key, make_progress(step)):
            self.queue.add_after(key, 15)


class _Simulation:
    """The world, and the replica that is at work in it."""

    def __init__(self, clock: VirtualClock, fates: tuple[str, ...], trouble: Trouble) -> None:
        self._clock = clock
        self._trouble = trouble
        self._events = 0
        self.memory = MemoryCluster(clock.now, self._watch)
        self._cluster = _UnreliableCluster(self.memory, clock, trouble)
        self.world = PlayedWorld(self.memory, fates, clock.now, lambda key, step: self._replica.was_told(key, step))
        self._restart()

    async def run(self) -> Rest:
        """From the first manifest to rest, and a restart at rest."""
        plot: list[tuple[float, Any]] = [(at, self._restart) for at in self._trouble.restarts]
        plot += [(at, lambda value=value: self.world.suspend(value)) for at, value in self._trouble.changes_of_mind]
        self.world.submit(suspended=self._trouble.starts_suspended)
        ticking = asyncio.create_task(self._tick())
        for at, happens in [*sorted(plot, key=lambda entry: entry[0]), (TROUBLE_SECONDS, self.world.want_in_the_end)]:
            await asyncio.sleep(max(0.0, at - self._clock()))
            happens()
        await self._rest()
        before = self.memory.version
        self._restart()
        await asyncio.sleep(REST_SECONDS)
        if ticking.done():
            ticking.result()
        ticking.cancel()
        self._running.cancel()
        kinds = (FINE_TUNE_JOBS, JOBS, PODS)
        objects = {kind: self.memory.objects(kind) for kind in kinds}
        return Rest(objects, self.world.created, self.memory.version - before)

    async def _rest(self) -> None:
        """Wait until nothing is written any more."""
        while self._clock() < _LIMIT_SECONDS:
            before = self.memory.version
            await asyncio.sleep(REST_SECONDS)
            if self.memory.version == before:
                return
        raise AssertionError("the operator does not come to rest")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.world.tick()

    def _restart(self) -> None:
        """The process is killed where it stands, and another starts."""
        if hasattr(self, "_running"):
            self._running.cancel()
        self._replica = _Replica(self._cluster, self._clock)
        self._running = asyncio.create_task(self._replica.run())

    def _watch(self, resource: Resource, type_: str, body: Object) -> None:
        delays: tuple[float, ...] = (0.01,)
        if self._clock() < TROUBLE_SECONDS:
            delays = self._trouble.deliveries[self._events % len(self._trouble.deliveries)]
            self._events += 1
        for delay in delays:
            asyncio.get_running_loop().call_later(delay, lambda: self._replica.saw(resource, type_, body))


def simulate(fates: tuple[str, ...], trouble: Trouble | None = None) -> Rest:
    """Bring a world to rest."""
    defects: list[str] = []

    class _Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                defects.append(repr(record.exc_info[1]))

    async def run(clock: VirtualClock) -> Rest:
        return await _Simulation(clock, fates, trouble or Trouble()).run()

    listener, logger = _Listener(logging.ERROR), logging.getLogger("finetune_operator")
    logger.addHandler(listener)
    try:
        rest = run_virtually(run)
    finally:
        logger.removeHandler(listener)
    return Rest(rest.objects, rest.jobs_made, rest.writes_after_restart, defects)


def of_job(rest: Rest, resource: Resource, name: str) -> list[Object]:
    """The objects of a kind that have a job's name."""
    return [
        body
        for body in rest.objects[resource]
        if (body["metadata"]["namespace"], body["metadata"]["name"]) == (NAMESPACE, name)
    ]
