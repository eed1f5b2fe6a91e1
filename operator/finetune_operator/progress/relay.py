"""Passes a report on to the replica that leads: a Service in front of several replicas does not know which one does."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from finetune_operator.progress.limiter import RateLimiter
from finetune_operator.progress.sources import RELAYED_BURST, RELAYED_PER_SECOND, Sources

_RELAYED_HEADER = "Finetune-Relayed"
_RETRY_SECONDS = "5"
_ANSWER_SECONDS = 4.0
"""Less than transformers' callback waits."""


class Relay:
    """Sends requests to the leader as they came, token and all, over TLS to whom the progress certificate names."""

    def __init__(
        self, acts: Callable[[], bool], leader: Callable[[], str], tls: Callable[[], ssl.SSLContext], server_name: str
    ) -> None:
        self._acts = acts
        self._leader = leader
        self._tls = tls
        self._server_name = server_name
        self._sources = Sources(RateLimiter(RELAYED_PER_SECOND, RELAYED_BURST))

    def middleware(self) -> Middleware:
        """Lets through what reaches the replica that acts, and passes on what reaches another."""

        @web.middleware
        async def relay(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self._acts() or request.match_info.http_exception is not None:
                return await handler(request)
            return await self._pass_on(request)

        return relay

    async def _pass_on(self, request: web.Request) -> web.Response:
        """The leader's answer, or 503 when there is none now."""
        address = self._leader()
        # A second hop would mean that two replicas each take the other for the leader.
        if not address or _RELAYED_HEADER in request.headers:
            return _refused(503, "no replica leads now; report again later")
        url = URL(f"https://{address}{request.rel_url.raw_path}", encoded=True)
        headers = {_RELAYED_HEADER: "1", "Authorization": request.headers.get("Authorization", "")}
        body = await request.read()
        if not self._sources.may_try(request.remote):
            return _refused(429, "too many tokens that are not valid came from this address; report again later")
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
                answer = await session.post(url, data=body, ssl=self._tls(), server_hostname=self._server_name)
                if answer.status != web.HTTPUnauthorized.status_code:
                    self._sources.was_good(request.remote)
                return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")
        except (TimeoutError, aiohttp.ClientError, OSError):
            self._sources.was_good(request.remote)
            return _refused(503, "the replica that leads does not answer; report again later")


def _refused(status: int, reason: str) -> web.Response:
    return web.json_response({"message": reason}, status=status, headers={"Retry-After": _RETRY_SECONDS})
