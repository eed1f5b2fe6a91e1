"""The workers: they take keys from the queue until they are cancelled, and no key's failure ends one."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from finetune_operator.cluster.client import ClusterError
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.store import Key
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.metrics.operator import CONTROLLER, OperatorMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workers:
    """A number of workers over one queue."""

    queue: WorkQueue[Key]
    reconciler: Reconciler
    metrics: OperatorMetrics
    count: int
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Work until cancelled."""
        self.metrics.max_workers.labels(CONTROLLER).set(self.count)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key, waited = await self.queue.get()
            # One of them goes to work in a turn of the loop: what others wait for is one plan, not one of each worker.
            async with self._turn:
                await asyncio.sleep(0)
            self.metrics.queue_adds.labels(CONTROLLER).inc()
            self.metrics.queue_seconds.labels(CONTROLLER).observe(waited)
            started = time.perf_counter()
            with self.metrics.active_workers.labels(CONTROLLER).track_inprogress():
                result = await self._reconcile(key)
            seconds = time.perf_counter() - started
            self.metrics.reconcile_seconds.labels(CONTROLLER).observe(seconds)
            self.metrics.work_seconds.labels(CONTROLLER).observe(seconds)
            self.metrics.reconciles.labels(CONTROLLER, result).inc()

    async def _reconcile(self, key: Key) -> str:
        """Reconcile a key and give it back to the queue; returns the result's name."""
        try:
            again = await self.reconciler.reconcile(key)
        except Exception as error:
            # A cluster error passes; anything else is a defect, and a traceback helps. Neither may stop the others.
            seconds = self.queue.failed(key)
            self.metrics.reconcile_errors.labels(CONTROLLER).inc()
            self.metrics.queue_retries.labels(CONTROLLER).inc()
            if isinstance(error, ClusterError):
                logger.warning("%s/%s: %s; again in %.0f s", *key, error, seconds)
            else:
                logger.exception("%s/%s: a defect; again in %.0f s", *key, seconds)
            return "error"
        self.queue.done(key)
        if again is None:
            return "success"
        self.queue.add_after(key, again.total_seconds())
        return "requeue_after"
