"""Workers: no key's failure ends one, errors back off, and what is due later comes later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from finetune_operator.cluster.client import ClusterError
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.store import Key
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.engine.workers import Workers
from finetune_operator.metrics.operator import CONTROLLER, OperatorMetrics
from virtual_time import VirtualClock, run_virtually

A, B = Key("team-a", "a"), Key("team-a", "b")


@dataclass
class Scripted:
    """Does what it is told for each key, and notes when."""

    clock: VirtualClock
    act: Callable[[Key, int], timedelta | None]
    done: list[tuple[str, float]] = field(default_factory=list)
    seconds: float = 0

    async def reconcile(self, key: Key) -> timedelta | None:
        await asyncio.sleep(self.seconds)
        self.done.append((key.name, round(self.clock(), 1)))
        return self.act(key, sum(name == key.name for name, _ in self.done))


@dataclass
class Outcome:
    done: list[tuple[str, float]]
    registry: CollectorRegistry

    def value(self, name: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def run(
    act: Callable[[Key, int], timedelta | None], *keys: Key, until: float = 100, count: int = 2, seconds: float = 0
) -> Outcome:
    """Work for some virtual time."""
    registry = CollectorRegistry()

    async def main(clock: VirtualClock) -> Outcome:
        scripted = Scripted(clock, act, seconds=seconds)
        queue: WorkQueue[Key] = WorkQueue(clock, lambda: 1.0)
        for key in keys:
            queue.add(key)
        workers = Workers(queue, cast("Reconciler", scripted), OperatorMetrics(registry), count)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(workers.run(), until)
        return Outcome(scripted.done, registry)

    return run_virtually(main)


def test_a_key_is_done_once() -> None:
    outcome = run(lambda key, times: None, A, B, A)
    assert [name for name, _ in outcome.done] == ["a", "b"]
    assert outcome.value("controller_runtime_reconcile_total", controller=CONTROLLER, result="success") == 2


def test_a_key_comes_again_when_it_is_due() -> None:
    outcome = run(lambda key, times: timedelta(seconds=15) if times < 3 else None, A)
    assert outcome.done == [("a", 0), ("a", 15), ("a", 30)]
    assert outcome.value("controller_runtime_reconcile_total", controller=CONTROLLER, result="requeue_after") == 2


def test_an_error_of_the_cluster_backs_off_and_others_go_on() -> None:
    def act(key: Key, times: int) -> timedelta | None:
        if key == A and times < 4:
            raise ClusterError("no")
        return None

    outcome = run(act, A, B, count=1)
    assert outcome.done == [("a", 0), ("b", 0), ("a", 1), ("a", 3), ("a", 7)]
    assert outcome.value("controller_runtime_reconcile_errors_total", controller=CONTROLLER) == 3
    assert outcome.value("workqueue_retries_total", name=CONTROLLER) == 3


def test_a_defect_ends_no_worker_and_leaves_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def act(key: Key, times: int) -> timedelta | None:
        raise KeyError("a defect")

    outcome = run(act, A, B, count=1, until=2)
    assert [name for name, _ in outcome.done] == ["a", "b", "a", "b"]
    assert "KeyError: 'a defect'" in caplog.text


def test_others_have_a_turn_between_any_two_that_go_to_work() -> None:
    keys = [Key("team-a", str(number)) for number in range(100)]
    turns, seen = 0, []

    async def main(clock: VirtualClock) -> None:
        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        queue: WorkQueue[Key] = WorkQueue(clock)
        for key in keys:
            queue.add(key)
        scripted = Scripted(clock, lambda key, times: seen.append(turns))
        workers = Workers(queue, cast("Reconciler", scripted), OperatorMetrics(CollectorRegistry()), 16)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.gather(workers.run(), others()), 0.1)

    run_virtually(main)
    assert len(seen) == len(keys) == len(set(seen))


def test_workers_work_at_the_same_time_but_never_on_one_key() -> None:
    keys = [Key("team-a", str(number)) for number in range(8)]
    outcome = run(lambda key, times: None, *keys, count=4, seconds=10)
    assert [moment for _, moment in outcome.done] == [10] * 4 + [20] * 4
    assert outcome.value("controller_runtime_max_concurrent_reconciles", controller=CONTROLLER) == 4
    assert outcome.value("controller_runtime_active_workers", controller=CONTROLLER) == 0
