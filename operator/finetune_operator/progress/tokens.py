"""Checks a pod's token by TokenReview: the right audience, and bound to a pod."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from finetune_operator.cluster.client import TOKEN_REVIEWS, ClusterError, Resource
from finetune_operator.progress.sources import Sources

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

CACHE_SECONDS = 90.0
"""An answer is not used for longer."""
REFRESH_SECONDS = (50.0, 70.0)
"""When a token in use is reviewed again, at random: those of jobs that start together are spread from then on."""
_VALID_SIZE = 20_000
_INVALID_SIZE = 5_000
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """The pod that a token was made for."""

    namespace: str
    name: str
    uid: str


class Reviews(Protocol):
    """Where TokenReviews are sent."""

    async def post(self, resource: Resource, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send one; raises ClusterError."""


class Throttled(Exception):
    """Too many tokens that are not valid came from there."""


@dataclass(frozen=True, slots=True)
class _Valid:
    """A token's pod, and for how long that is to be believed."""

    pod: PodIdentity
    refresh_at: float
    until: float


class TokenReviewer:
    """Remembers each answer by the token's hash: a pod costs one review a minute, and only its first report waits.

    A token that never was valid is reviewed only while its sender's address has a budget left.
    """

    def __init__(
        self,
        reviews: Reviews,
        audience: str,
        clock: Callable[[], float] = time.monotonic,
        sources: Sources | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._reviews = reviews
        self._audience = audience
        self._clock = clock
        self._sources = sources or Sources()
        self._uniform = uniform
        self._valid: dict[bytes, _Valid] = {}
        self._invalid: dict[bytes, float] = {}
        """And until when. Apart from the valid ones, which a stranger must not push out."""
        self._under_way: dict[bytes, asyncio.Task[None]] = {}

    async def identify(self, token: str, address: str | None = None) -> PodIdentity | None:
        """The pod a token is bound to, or None when it is not valid here. Raises ClusterError, Throttled."""
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        known = self._valid.get(digest)
        if known is not None and now < known.until:
            if now >= known.refresh_at and digest not in self._under_way:
                self._refresh(token, digest)
            return known.pod
        if now < self._invalid.get(digest, now):
            return None
        if known is not None:
            return await self._review(token, digest)  # its pod is known here: it only has to be asked again
        if not self._sources.may_try(address):
            raise Throttled
        try:
            identity = await self._review(token, digest)
        except ClusterError:
            self._sources.was_good(address)  # for all that is known
            raise
        if identity is not None:
            self._sources.was_good(address)
        return identity

    def _refresh(self, token: str, digest: bytes) -> None:
        """Review a token again while its report is answered."""

        async def review() -> None:
            try:
                await self._review(token, digest)
            except ClusterError as error:
                logger.info("a token could not be reviewed again: %s", error)
            finally:
                del self._under_way[digest]

        self._under_way[digest] = asyncio.create_task(review())

    async def _review(self, token: str, digest: bytes) -> PodIdentity | None:
        spec = {"token": token, "audiences": [self._audience]}
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answer = await self._reviews.post(TOKEN_REVIEWS, review)
        identity = _identity(answer.get("status", {}), self._audience)
        now = self._clock()
        self._valid.pop(digest, None)
        if identity is None:
            self._invalid[digest] = now + CACHE_SECONDS
            self._invalid = _shortened(self._invalid, _INVALID_SIZE)
        else:
            refresh_at = now + self._uniform(*REFRESH_SECONDS)
            self._valid[digest] = _Valid(identity, refresh_at, now + CACHE_SECONDS)
            self._valid = _shortened(self._valid, _VALID_SIZE)
        return identity


def _shortened(known: dict[bytes, Value], size: int) -> dict[bytes, Value]:
    """Make room, where it is full: the older half goes."""
    return known if len(known) <= size else dict(islice(known.items(), size // 2, None))


def _identity(status: Mapping[str, Any], audience: str) -> PodIdentity | None:
    if not status.get("authenticated") or audience not in status.get("audiences", ()):
        return None
    user = status.get("user", {})
    extra = user.get("extra", {})
    username = user.get("username", "")
    names, uids = extra.get(_POD_NAME, ()), extra.get(_POD_UID, ())
    if not username.startswith(_ACCOUNT_PREFIX) or len(names) != 1 or len(uids) != 1:
        return None
    namespace = username.removeprefix(_ACCOUNT_PREFIX).partition(":")[0]
    return PodIdentity(namespace, names[0], uids[0])
