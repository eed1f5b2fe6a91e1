"""Checks a pod's token by TokenReview: the right audience, and bound to a pod."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from finetune_operator.cluster.client import TOKEN_REVIEWS, Resource

CACHE_SECONDS = 60.0
_CACHE_SIZE = 20_000
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


class TokenReviewer:
    """Remembers each answer for a minute, by the token's hash, so that a pod costs one review a minute."""

    def __init__(self, reviews: Reviews, audience: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._reviews = reviews
        self._audience = audience
        self._clock = clock
        self._known: dict[bytes, tuple[float, PodIdentity | None]] = {}

    async def identify(self, token: str) -> PodIdentity | None:
        """The pod a token is bound to, or None when it is not valid here. Raises ClusterError."""
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock()
        known = self._known.get(digest)
        if known is not None and now < known[0]:
            return known[1]
        spec = {"token": token, "audiences": [self._audience]}
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        answer = await self._reviews.post(TOKEN_REVIEWS, review)
        identity = _identity(answer.get("status", {}), self._audience)
        if len(self._known) >= _CACHE_SIZE:
            self._forget(now)
        self._known[digest] = (now + CACHE_SECONDS, identity)
        return identity

    def _forget(self, now: float) -> None:
        """Make room: what has expired goes, and the oldest where a stranger has filled it with tokens of no worth."""
        unexpired = [entry for entry in self._known.items() if now < entry[1][0]]
        self._known = dict(unexpired[-_CACHE_SIZE // 2 :])


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
