"""kopf as the host of three watches: a handler hands what it saw to the feed, and does nothing else.

kopf's create, update and timer handlers keep state in annotations and can lose updates; its indexes make start-up
quadratic. So only `on.event` is used, without finalizers and without any state of kopf's in the objects.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import kopf

from finetune_api.v1alpha1 import GROUP, PLURAL, VERSION
from finetune_operator.engine.feed import Feed
from finetune_operator.engine.resync import OURS
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.work_queue import WorkQueue

_PAGE_SIZE = 100
_IDLE_SECONDS = 0.1


class _NoEssence(kopf.DiffBaseStorage):
    """What kopf compares objects by: nothing. Its own ways copy an object several times at each event."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


def make_registry(store: Store, queue: WorkQueue[Key]) -> kopf.OperatorRegistry:
    """Handlers that feed a store and a queue."""
    registry, feed = kopf.OperatorRegistry(), Feed(store, queue)

    @kopf.on.login(registry=registry)
    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        account = kopf.login_with_service_account(**arguments)
        return _by_address(account) if account else kopf.login_with_kubeconfig(**arguments)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def on_fine_tune_job(event: kopf.RawEvent, **_: Any) -> None:
        feed.fine_tune_job(event["type"], event["object"])

    @kopf.on.event("batch", "v1", "jobs", registry=registry)
    async def on_job(event: kopf.RawEvent, **_: Any) -> None:
        feed.job(event["type"], event["object"])

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def on_pod(event: kopf.RawEvent, **_: Any) -> None:
        feed.pod(event["type"], event["object"])

    return registry


def _by_address(info: kopf.ConnectionInfo) -> kopf.ConnectionInfo:
    """Kopf takes the API server's name; every pod knows its address too, and does not need DNS for it."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return info
    return dataclasses.replace(info, server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


def make_settings() -> kopf.OperatorSettings:
    """Kopf with everything off that is not a watch, and only our own Jobs and pods sent by the server."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    # A replica that cannot watch for 20 s had better end and start anew than go on deaf.
    settings.networking.error_backoffs = (1, 1, 2, 3, 5, 8)
    settings.persistence.diffbase_storage = _NoEssence()
    # So long kopf keeps a task and the last event of every object; with its 5 s, those of thousands at start.
    settings.queueing.idle_timeout = _IDLE_SECONDS
    settings.watching.chunk_size = _PAGE_SIZE
    settings.watching.label_selectors["batch", "v1", "jobs"] = OURS
    settings.watching.label_selectors["", "v1", "pods"] = OURS
    return settings
