"""Serves metrics and health."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from finetune_operator.metrics.exposition import expose

METRICS_PATH = "/metrics"
_TURNS = 8
"""Turns of all else between two pieces: a report needs a dozen, and would wait for a piece before each."""
_IDLE_SECONDS = 2.0
"""A connection without a request is closed: with TLS each takes 0.3 MiB, which is more than a new handshake costs."""
_BACKLOG = 4096
"""Connections that wait to be accepted; one more is dropped, and its client tries again only after a second."""


def metrics_routes(registry: CollectorRegistry) -> list[web.RouteDef]:
    """`/metrics` for Prometheus."""

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

    return [web.get(METRICS_PATH, metrics)]


def health_routes(unhealthy: Callable[[], str | None], not_ready: Callable[[], str | None]) -> list[web.RouteDef]:
    """`/healthz` and `/readyz`; 503 with the reason when there is one."""

    def told(why_not: Callable[[], str | None]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            reason = why_not()
            return web.Response(text=reason or "ok", status=503 if reason else 200)

        return answer

    return [web.get("/healthz", told(unhealthy)), web.get("/readyz", told(not_ready))]


def make_app(routes: Iterable[web.RouteDef], middlewares: Sequence[Middleware] = ()) -> web.Application:
    """An application of some routes."""
    app = web.Application(middlewares=middlewares)
    app.add_routes(routes)
    return app


@contextlib.asynccontextmanager
async def served(app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Serve an application as long as the with block. Requests are counted, not logged: some come every second."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=_IDLE_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=tls, backlog=_BACKLOG).start()
        yield
    finally:
        await runner.cleanup()
