"""Whose a token is, by TokenReview; what that means here is told once and remembered for about a minute."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from finetune_operator.cluster.client import TOKEN_REVIEWS, ClusterError, Resource
from finetune_operator.progress.sources import Sources

Value = TypeVar("Value")
Identity = TypeVar("Identity")

logger = logging.getLogger(__name__)

CACHE_SECONDS = 90.0
"""An answer is not used for longer."""
REFRESH_SECONDS = (30.0, 80.0)
"""When a token in use is reviewed again, at random: those of jobs that start together are spread at once."""
REVIEWS_AT_ONCE = 20
"""First reviews under way. Far less than an address' budget: those of a thousand jobs that start together behind one
address wait for each other, and are not taken for a stranger's guesses."""
_VALID_SIZE = 20_000
_INVALID_SIZE = 5_000


@dataclass(frozen=True, slots=True)
class User:
    """Whose a token is, in the API server's words."""

    name: str
    uid: str
    groups: Sequence[str]
    extra: Mapping[str, Sequence[str]]


class Reviews(Protocol):
    """Where reviews are sent."""

    async def post(self, resource: Resource, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send one; raises ClusterError."""


class Throttled(Exception):
    """Too many tokens that are not valid came from there."""


@dataclass(frozen=True, slots=True)
class _Valid(Generic[Identity]):
    """What a token's user is here, and for how long that is to be believed."""

    identity: Identity
    refresh_at: float
    until: float


class TokenReviewer(Generic[Identity]):
    """Remembers each answer by the token's hash: a token in use costs a review a minute, and only its first use waits.

    `identify` tells what a user is here, None when nobody. A token that never was valid is reviewed only while its
    sender's address has a budget left.
    """

    def __init__(
        self,
        reviews: Reviews,
        audience: str | None,
        identify: Callable[[User], Awaitable[Identity | None]],
        *,
        clock: Callable[[], float] = time.monotonic,
        sources: Sources | None = None,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """With no audience a token must be for the API server itself."""
        self._reviews = reviews
        self._identify = identify
        self._audience = audience
        self._clock = clock
        self._sources = sources or Sources()
        self._uniform = uniform
        self._valid: dict[bytes, _Valid[Identity]] = {}
        self._invalid: dict[bytes, float] = {}
        """And until when. Apart from the valid ones, which a stranger must not push out."""
        self._under_way: dict[bytes, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(REVIEWS_AT_ONCE)

    async def identify(self, token: str, address: str | None = None) -> Identity | None:
        """What a token's user is here, or None when it is not valid. Raises ClusterError, Throttled."""
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        known = self._valid.get(digest)
        if known is not None and now < known.until:
            if now >= known.refresh_at and digest not in self._under_way:
                self._refresh(token, digest)
            return known.identity
        if now < self._invalid.get(digest, now):
            return None
        if known is not None:
            return await self._review(token, digest)  # its user is known here: it only has to be asked again
        if not self._sources.has_left(address):
            raise Throttled  # without a wait for others
        async with self._turns:
            return await self._try(token, digest, address)

    async def _try(self, token: str, digest: bytes, address: str | None) -> Identity | None:
        """Review a token that is not known."""
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
        """Review a token again while its request is answered."""

        async def review() -> None:
            try:
                await self._review(token, digest)
            except ClusterError as error:
                logger.info("a token could not be reviewed again: %s", error)
            finally:
                del self._under_way[digest]

        self._under_way[digest] = asyncio.create_task(review())

    async def _review(self, token: str, digest: bytes) -> Identity | None:
        spec = {"token": token} if self._audience is None else {"token": token, "audiences": [self._audience]}
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answer = await self._reviews.post(TOKEN_REVIEWS, review)
        user = _user(answer.get("status", {}), self._audience)
        identity = None if user is None else await self._identify(user)
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


def bearer_token(authorization: str) -> str:
    """The token in an Authorization header; empty when there is none. Tokens are ASCII (RFC 6750, section 2.1)."""
    scheme, _, token = authorization.partition(" ")
    return token if scheme == "Bearer" and token.isascii() else ""


def _shortened(known: dict[bytes, Value], size: int) -> dict[bytes, Value]:
    """Make room, where it is full: the older half goes."""
    return known if len(known) <= size else dict(islice(known.items(), size // 2, None))


def _user(status: Mapping[str, Any], audience: str | None) -> User | None:
    """Whom a TokenReview found. Nobody, unless the API server says that it looked at the audience."""
    if not status.get("authenticated") or (audience is not None and audience not in status.get("audiences", ())):
        return None
    user = status.get("user", {})
    if "username" not in user:
        return None
    return User(user["username"], user.get("uid", ""), user.get("groups", ()), user.get("extra", {}))
