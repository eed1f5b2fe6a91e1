"""Puts the operator together: the API, the lease, the watches, the workers, the resync, HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import kopf
from aiohttp import web
from kubernetes.aio import client, config
from prometheus_client import CollectorRegistry

from finetune_operator.cluster.client import ClusterError
from finetune_operator.cluster.kubernetes_client import KubernetesCluster
from finetune_operator.engine.reconciler import Reconciler
from finetune_operator.engine.resync import resync
from finetune_operator.engine.store import Key, Store
from finetune_operator.engine.work_queue import WorkQueue
from finetune_operator.engine.workers import Workers
from finetune_operator.host.health import Health
from finetune_operator.host.http import make_http_app
from finetune_operator.host.leader import Leadership, address_in, lead, make_identity, release
from finetune_operator.host.settings import OperatorSettings
from finetune_operator.host.watches import make_registry, make_settings
from finetune_operator.metrics.jobs import JobCollector
from finetune_operator.metrics.operator import CONTROLLER, OperatorMetrics
from finetune_operator.plan.status import PROGRESS_INTERVAL
from finetune_operator.progress.pace import Pace
from finetune_operator.progress.relay import Relay
from finetune_operator.progress.server import ProgressServer
from finetune_operator.progress.tokens import TokenReviewer

_GRACE_SECONDS = 5.0
_RETRY_SECONDS = 5.0
_STOP_SECONDS = 2.0
_IDLE_SECONDS = 2.0
"""A connection without a request is closed: with TLS each takes 0.3 MiB, which is more than a new handshake costs."""
_BACKLOG = 4096
"""Connections that wait to be accepted; one more is dropped, and its client tries again only after a second."""
_USER_AGENT = "finetune-operator"
"""Also the field manager of what is written."""

logger = logging.getLogger(__name__)


class LostLease(Exception):
    """Another replica may lead now."""


class App:
    """One replica of the operator."""

    def __init__(self, settings: OperatorSettings, take_signals: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._take_signals = take_signals
        self.store = Store()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.registry = CollectorRegistry()
        self.metrics = OperatorMetrics(self.registry)
        self.metrics.watch_queue(self.queue.__len__, self.queue.longest_running_seconds)
        self.registry.register(JobCollector(self.store.samples, lambda: datetime.now(UTC)))
        self.leadership = Leadership(settings.lease_seconds)
        self.metrics.leader.labels(CONTROLLER).set_function(self.leadership.holds)
        self._name = settings.identity or socket.gethostname()
        self._pace = Pace(PROGRESS_INTERVAL.total_seconds())
        self._has_store = False
        self.health = Health(settings.resync_seconds + _GRACE_SECONDS, self.queue.longest_running_seconds)

    async def run(self) -> None:
        """Serve HTTP, wait for the lease, and act until cancelled. Raises LostLease among others."""
        await _load_cluster_config()
        async with client.ApiClient() as api, contextlib.AsyncExitStack() as stack:
            api.user_agent = _USER_AGENT
            cluster = KubernetesCluster(
                api, self.settings.watch_namespace or None, self.leadership.holds, self._count_request
            )
            http = make_http_app(self.registry, self.health.unhealthy)
            await stack.enter_async_context(_served(http, self.settings.http_port))
            if self.settings.progress_certificate is not None:
                app, tls = self._progress_app(cluster)
                await stack.enter_async_context(_served(app, self.settings.progress_port, tls))
            await self._lead(api, cluster)

    async def _lead(self, api: client.ApiClient, cluster: KubernetesCluster) -> None:
        """Act while holding the lease; whichever fails, the lease or the acting, ends both."""
        identity = make_identity(self._name, self.settings.progress_address())
        leads = asyncio.Event()

        async def hold() -> None:
            await lead(api, self.settings.operator_namespace, identity, self.leadership, leads)
            raise LostLease("the lease is lost; the process ends, to start anew as a follower")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(hold())
                await leads.wait()
                await self._act(cluster)
        finally:
            if leads.is_set():
                await release(api, self.settings.operator_namespace, identity, self.leadership)

    async def _act(self, cluster: KubernetesCluster) -> None:
        """What the leader does; when any part of it fails, all of it ends."""
        reconciler = Reconciler(
            self.store,
            cluster,
            self.settings.pod_settings(),
            lambda: datetime.now(UTC),
            instance=self._name,
            applied=self.metrics.plan_applied,
            others_wait=lambda: len(self.queue) > 0,
        )
        workers = Workers(self.queue, reconciler, self.metrics, self.settings.workers)
        # Workers start only after the first full list: a store with holes would plan what is there already.
        await self._first_resync(cluster)
        self._has_store = True
        # What there is now stays. To look it through takes the collector 50 ms each time, and nothing is answered then.
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as group:
            group.create_task(workers.run())
            group.create_task(self._keep_resyncing(cluster))
            group.create_task(self._watch())

    async def _watch(self) -> None:
        """Run kopf's watches; they end only by an error."""
        namespace = self.settings.watch_namespace
        tasks = await kopf.spawn_tasks(
            registry=make_registry(self.store, self.queue),
            settings=make_settings(),
            standalone=True,
            identity=self._name,  # type: ignore[arg-type]  # or kopf asks for a user's name, and a container's may have none
            clusterwide=not namespace,
            namespaces=[namespace] if namespace else [],
        )
        self._take_signals()  # kopf has taken them over
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            raise RuntimeError("the watches have ended")
        finally:
            # Not `kopf.run_tasks`: where one watch has failed, it waits for the others, and they may wait for a login
            # that nobody will do any more.
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_STOP_SECONDS)

    async def _first_resync(self, cluster: KubernetesCluster) -> None:
        while True:
            try:
                await resync(cluster, self.store, self.queue, grace_seconds=0)
            except ClusterError as error:
                logger.warning("the first list failed: %s; again in %.0f s", error, _RETRY_SECONDS)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self.health.resynced(missed=0)
                return

    async def _keep_resyncing(self, cluster: KubernetesCluster) -> None:
        while True:
            # With jitter, so that several operators do not list at the same moment for ever.
            await asyncio.sleep(self.settings.resync_seconds * random.uniform(0.9, 1.1))
            try:
                self.health.resynced(await resync(cluster, self.store, self.queue, _GRACE_SECONDS))
            except ClusterError as error:
                logger.warning("the resync failed: %s", error)

    def _progress_app(self, cluster: KubernetesCluster) -> tuple[web.Application, ssl.SSLContext]:
        """Takes the trainers' reports. Only the leader has the store they go into; the others pass them on to it."""
        settings = self.settings
        reviewer = TokenReviewer(cluster, settings.pod_settings().progress_audience)
        server = ProgressServer(self.store, reviewer, self._reported, self._count_report)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(str(settings.progress_certificate), str(settings.progress_key))
        trusted = ssl.create_default_context(cafile=str(settings.progress_ca or settings.progress_certificate))
        relay = Relay(
            acts=lambda: self._has_store and self.leadership.holds(),
            leader=lambda: address_in(self.leadership.holder),
            tls=trusted,
            server_name=urlsplit(settings.progress_url).hostname or "",
        )
        return server.app([relay.middleware()]), tls

    def _reported(self, key: Key, is_first: bool) -> None:
        """A job has news: Prometheus sees it at once, its status soon."""
        self.queue.add_after(key, self._pace.delay(is_first))

    def _count_report(self, code: str) -> None:
        self.metrics.reports.labels(code).inc()

    def _count_request(self, method: str, code: str) -> None:
        self.metrics.requests.labels(method, code).inc()


@contextlib.asynccontextmanager
async def _served(app: web.Application, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Serve an application as long as the with block. Requests are counted, not logged: some come every second."""
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=_IDLE_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=tls, backlog=_BACKLOG).start()
        yield
    finally:
        await runner.cleanup()


async def _load_cluster_config() -> None:
    """The pod's service account, or a kubeconfig outside a cluster: the default of every ApiClient from now on."""
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()
    configuration = client.Configuration.get_default_copy()
    # Or aiohttp looks for a password in ~/.netrc at each request, in a thread of its own.
    configuration.client_session_kwargs = {"trust_env": False}
    client.Configuration.set_default(configuration)
