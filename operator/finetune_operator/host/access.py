"""Who may read the metrics: whom the API server knows by a token (TokenReview) and lets (SubjectAccessReview)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from finetune_operator.cluster.client import SUBJECT_ACCESS_REVIEWS, ClusterError, Refused
from finetune_operator.host.http import METRICS_PATH
from finetune_operator.progress.tokens import Reviews, Throttled, TokenReviewer, User, bearer_token

_VERB = "get"
_RETRY_SECONDS = "5"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reader:
    """Who asks for the metrics."""

    name: str
    may_read: bool


def make_reviewer(reviews: Reviews) -> TokenReviewer[Reader]:
    """Judges tokens for the API server itself, as Prometheus' own is."""

    async def judge(user: User) -> Reader:
        spec = {
            "user": user.name,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
            "nonResourceAttributes": {"path": METRICS_PATH, "verb": _VERB},
        }
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        answer = await reviews.post(SUBJECT_ACCESS_REVIEWS, review)
        return Reader(user.name, bool(answer.get("status", {}).get("allowed")))

    return TokenReviewer(reviews, None, judge)


def readers_only(reviewer: TokenReviewer[Reader]) -> Middleware:
    """Lets through who may read; tells everybody else why not."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        token = bearer_token(request.headers.get("Authorization", ""))
        try:
            reader = await reviewer.identify(token, request.remote) if token else None
        except Throttled:
            return _later(429, "too many tokens that are not valid came from this address")
        except ClusterError as error:
            if isinstance(error, Refused):  # an outage is told elsewhere; a right that is missing is not
                logger.warning("who asks for metrics cannot be checked: %s", error)
            return _later(503, "the token cannot be checked now")
        if reader is None:
            text = "a bearer token that is valid for the API server is needed\n"
            return web.Response(status=401, text=text, headers={"WWW-Authenticate": "Bearer"})
        if not reader.may_read:
            return web.Response(status=403, text=f"{reader.name} may not {_VERB} the nonResourceURL {METRICS_PATH}\n")
        return await handler(request)

    return check


def _later(status: int, reason: str) -> web.Response:
    return web.Response(status=status, text=f"{reason}\n", headers={"Retry-After": _RETRY_SECONDS})
