"""Metrics written in pieces are what would be written at once, and let the event loop go on meanwhile."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_api.v1alpha1.status import Phase, Progress
from finetune_operator.host.http import health_routes, make_app, metrics_routes
from finetune_operator.metrics.exposition import expose
from finetune_operator.metrics.figures import JobSample, figures_of
from finetune_operator.metrics.jobs import JobCollector
from finetune_operator.metrics.operator import OperatorMetrics

Client = TestClient[web.Request, web.Application]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIGURES = figures_of(Progress(step=5, total_steps=10, percent=50, loss=0.5), None)
ACCEPTED = [
    "",
    "text/plain",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "text/plain;version=1.0.0;escaping=underscores",
    "application/openmetrics-text",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
    "application/openmetrics-text;version=1.0.0;escaping=dots",
    "application/openmetrics-text;version=1.0.0;escaping=values",
]


def jobs(count: int) -> list[JobSample]:
    model = 'hf://a/"b"\\\n# EOF\n'
    return [
        JobSample("team-a", f"job-{number}", "TextClassification", "Full", model, Phase.RUNNING, FIGURES)
        for number in range(count)
    ]


class Odd(Collector):
    """A family that the others are not like: a name that is no legacy name, and a help text of several lines."""

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("weiß.wert", "First line\n# EOF\n", labels=["größe"])
        for number in range(450):
            family.add_metric([f"# {number}\n"], number)
        yield family


def make_registry(known: list[JobSample]) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    registry.register(JobCollector(lambda: known, lambda: NOW))
    registry.register(Odd())
    for number in range(30):  # more series of one histogram than a piece has
        metrics.duration_seconds.labels(f"team-{number}", "Complete").observe(number)
    metrics.reports.labels("200").inc(exemplar={"trace": "abc"})
    Histogram("wait_seconds", "Waits.", registry=registry).observe(3, exemplar={"trace": "abc"})
    Gauge("never", "Without a series.", ("label",), registry=registry)
    return registry


@pytest.mark.security(20)
@pytest.mark.parametrize("accept", ACCEPTED)
@pytest.mark.parametrize("num_jobs", [0, 1, 100, 101])
def test_pieces_are_what_is_written_at_once(accept: str, num_jobs: int) -> None:
    encode, _ = choose_encoder(accept)
    registry = make_registry(jobs(num_jobs))
    pieces = list(expose(registry, encode))
    assert b"".join(pieces) == encode(registry)
    assert all(pieces), "an empty piece would end a chunked answer"


@pytest.mark.parametrize("accept", ACCEPTED)
def test_an_empty_registry_is_written_as_such(accept: str) -> None:
    encode, _ = choose_encoder(accept)
    assert b"".join(expose(CollectorRegistry(), encode)) == encode(CollectorRegistry())


def test_no_metric_of_the_operator_has_samples_that_the_classic_text_moves() -> None:
    registry = make_registry(jobs(1))
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert not [name for name in names if name.endswith(("_created", "_gsum", "_gcount"))]


def test_what_changes_between_pieces_is_in_the_next_scrape_and_no_family_is_torn() -> None:
    known = jobs(500)
    registry = make_registry(known)
    encode, _ = choose_encoder("")
    before, pieces = encode(registry), []
    for piece in expose(registry, encode):
        pieces.append(piece)
        if b"finetune_job_info{" in piece:
            known.clear()
    assert b"".join(pieces) == before
    assert b"finetune_job_info{" not in encode(registry)


def test_the_samples_of_thousands_of_jobs_are_never_in_memory_at_once() -> None:
    registry = make_registry(jobs(5_000))
    encode, _ = choose_encoder("")
    for _ in expose(registry, encode):
        pass
    tracemalloc.start()
    size = sum(map(len, expose(registry, encode)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 2_000_000
    assert peak < 3_000_000  # one number each is kept, and 100 samples


def serve(registry: CollectorRegistry, test: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        app = make_app([*metrics_routes(registry), *health_routes(lambda: None, lambda: None)])
        async with TestClient(TestServer(app)) as client:
            await test(client)

    asyncio.run(main())


@pytest.mark.parametrize("accept", ACCEPTED)
def test_it_is_served_whole_with_its_type(accept: str) -> None:
    registry = make_registry(jobs(150))
    encode, content_type = choose_encoder(accept)

    async def test(client: Client) -> None:
        async with client.get("/metrics", headers={"Accept": accept}) as answer:
            assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
            assert await answer.read() == encode(registry)
        async with client.head("/metrics") as answer:
            assert (answer.status, await answer.read()) == (200, b"")

    serve(registry, test)


def test_two_scrapes_at_once_are_both_whole_and_others_have_their_turn() -> None:
    registry = make_registry(jobs(2_000))
    encode, _ = choose_encoder("text/plain")
    ended: list[str] = []

    async def scrape(client: Client) -> None:
        async with client.get("/metrics", headers={"Accept": "text/plain"}) as answer:
            assert await answer.read() == encode(registry)
        ended.append("scrape")

    async def ask(client: Client) -> None:
        await asyncio.sleep(0.01)
        async with client.get("/healthz") as answer:
            assert answer.status == 200
        ended.append("health")

    async def test(client: Client) -> None:
        await asyncio.gather(scrape(client), scrape(client), ask(client))

    serve(registry, test)
    assert ended[0] == "health"


def test_a_scrape_that_fails_midway_is_no_whole_answer() -> None:
    """Or Prometheus would take the jobs that are missing for gone."""

    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            yield GaugeMetricFamily("fine", "Fine.", value=1)
            raise RuntimeError("broken")

    registry = CollectorRegistry()
    registry.register(Broken())

    async def test(client: Client) -> None:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with client.get("/metrics") as answer:
                await answer.read()

    serve(registry, test)
