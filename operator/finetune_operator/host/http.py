"""Serves metrics and health."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


def make_http_app(registry: CollectorRegistry, unhealthy: Callable[[], str | None]) -> web.Application:
    """`/metrics` for Prometheus; `/healthz`, 503 with the reason when `unhealthy` gives one; `/readyz`."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # In a thread: thousands of jobs make seconds of work, and watches, lease and reports must not wait for it.
        body = await asyncio.to_thread(encode, registry)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def health(request: web.Request) -> web.Response:
        reason = unhealthy()
        return web.Response(text=reason or "ok", status=503 if reason else 200)

    async def ready(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", health), web.get("/readyz", ready)])
    return app
