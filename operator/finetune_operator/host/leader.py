"""Leadership by a Lease: who holds it acts, and stops by its own clock when it could not renew in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client import ApiClient
from kubernetes.aio.leaderelection import leaderelection
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

LEASE_NAME = "finetune-operator"
_SEPARATOR = "_"
"""Between a replica's name and its address; no pod's name has one."""

_RELEASE_TRIES = 3
_RELEASE_SECONDS = 1.0

logger = logging.getLogger(__name__)


def make_identity(name: str, address: str) -> str:
    """What a replica writes into the Lease: its name, and where the others reach it when that is known."""
    return f"{name}{_SEPARATOR}{address}" if address else name


def address_in(identity: str) -> str:
    """The address in an identity; empty when there is none."""
    return identity.partition(_SEPARATOR)[2]


class Leadership:
    """Knows until when this replica may write, and who leads when it does not.

    The elector notices a lost lease only when it runs; a process that was stopped and wakes up would write before.
    So every write asks `holds()`, which compares the time of the last renewal with a clock that goes on while the
    process does not.
    """

    def __init__(self, lease_seconds: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease_seconds = lease_seconds
        self.holder = ""
        """The identity that was last seen in the Lease."""
        self._clock = clock
        self._renewed_at: float | None = None

    def renewed(self, at: float) -> None:
        """The lease was renewed by a request sent at that time."""
        self._renewed_at = at

    def given_up(self) -> None:
        """From now on this replica writes nothing, whatever its lease says."""
        self._renewed_at = None

    def holds(self) -> bool:
        """Whether this replica still leads, with a margin for a request under way."""
        margin = self.lease_seconds * 2 / 3
        return self._renewed_at is not None and self._clock() - self._renewed_at < margin

    def now(self) -> float:
        """The clock that renewals are told by."""
        return self._clock()


class _ObservedLock(LeaseLock):
    """A LeaseLock that tells the leadership what it saw, and to which an unreachable API server is a failed try.

    kubernetes 37.0.2's own lets the transport's errors end the elector, waits five minutes for an answer, and passes
    pretty=True to create, which its generated API refuses.
    """

    def __init__(self, namespace: str, identity: str, api: ApiClient, leadership: Leadership) -> None:
        super().__init__(LEASE_NAME, namespace, identity, api)
        self._leadership = leadership
        self._answer_seconds = leadership.lease_seconds / 3

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        answer: tuple[bool, Any] = await self._tried(super().get(name, namespace)) or (False, _unreachable())
        found, record = answer
        if found:
            self._leadership.holder = record.holder_identity or ""
        return answer

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        sent = self._leadership.now()
        lease = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        created = await self._tried(self.api_instance.create_namespaced_lease(namespace, lease))
        return self._told(created is not None, sent)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        sent = self._leadership.now()
        lease = self.lease_reference or client.V1Lease()
        lease.spec = self.update_lease(updated_record, lease.spec)
        # It carries the resourceVersion it was read with: of two that try, one is refused.
        updated = await self._tried(self.api_instance.replace_namespaced_lease(name, namespace, lease))
        return self._told(updated is not None, sent)

    async def _tried(self, request: Coroutine[Any, Any, Any]) -> Any:
        """The answer to a request, or None when it failed."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await request
        except client.ApiException as error:
            logger.warning("the lease: %s", error.reason)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            logger.warning("the lease: %s: %s", type(error).__name__, error)
        return None

    def _told(self, succeeded: bool, sent: float) -> bool:
        if succeeded:
            self._leadership.renewed(sent)
            self._leadership.holder = self.identity
        return succeeded


async def release(api: ApiClient, namespace: str, identity: str, leadership: Leadership) -> None:
    """Give the lease back, if it is still ours, so that the next replica need not wait until it has run out."""
    leadership.given_up()
    leases = client.CoordinationV1Api(api)
    for _ in range(_RELEASE_TRIES):  # a renewal that was under way may be in between
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                lease = await leases.read_namespaced_lease(LEASE_NAME, namespace)
                if lease.spec is None or lease.spec.holder_identity != identity:
                    return
                lease.spec.holder_identity = ""
                lease.spec.lease_duration_seconds = 1
                await leases.replace_namespaced_lease(LEASE_NAME, namespace, lease)
                return
        except client.ApiException as error:
            logger.info("the lease is not given back: %s", error.reason)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            logger.info("the lease is not given back: %s: %s", type(error).__name__, error)


def _unreachable() -> client.ApiException:
    """What the elector tries again after."""
    return client.ApiException(status=0, reason="no answer")


async def lead(api: ApiClient, namespace: str, identity: str, leadership: Leadership, leads: asyncio.Event) -> None:
    """Wait for the lease, set `leads` while holding it, and return when it is lost."""
    seconds = leadership.lease_seconds

    async def say_leads() -> None:
        leads.set()

    async def say_lost() -> None:
        logger.warning("the lease is lost")

    config = Config(
        _ObservedLock(namespace, identity, api, leadership),
        lease_duration=seconds,
        renew_deadline=seconds * 2 / 3,
        retry_period=max(1.0, seconds * 2 / 15),  # the elector takes no less
        onstarted_leading=say_leads,
        onstopped_leading=say_lost,
    )
    await leaderelection.LeaderElection(config).run()
