"""Serves metrics and health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from finetune_operator.metrics.exposition import expose

_TURNS = 8
"""Turns of all else between two pieces: a report needs a dozen, and would wait for a piece before each."""


def make_http_app(registry: CollectorRegistry, unhealthy: Callable[[], str | None]) -> web.Application:
    """`/metrics` for Prometheus; `/healthz`, 503 with the reason when `unhealthy` gives one; `/readyz`."""

    async def metrics(request: web.Request) -> web.StreamResponse:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        for piece in expose(registry, encode) if request.method == "GET" else ():
            await response.write(piece)
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        await response.write_eof()
        return response

    async def health(request: web.Request) -> web.Response:
        reason = unhealthy()
        return web.Response(text=reason or "ok", status=503 if reason else 200)

    async def ready(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", health), web.get("/readyz", ready)])
    return app
