"""Puts the operator together: the API, the lease, the watches, the workers, the resync, HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
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
from finetune_operator.host.access import make_reviewer, readers_only
from finetune_operator.host.certificates import Certificate, follow
from finetune_operator.host.health import Health
from finetune_operator.host.http import health_routes, make_app, metrics_routes, served
from finetune_operator.host.leader import Leadership, address_in, lead, make_identity, release
from finetune_operator.host.settings import OperatorSettings
from finetune_operator.host.watches import make_registry, make_settings
from finetune_operator.metrics.jobs import JobCollector
from finetune_operator.metrics.operator import CONTROLLER, OperatorMetrics
from finetune_operator.plan.names import PROGRESS_AUDIENCE
from finetune_operator.plan.settings import PodSettings
from finetune_operator.plan.status import progress_interval
from finetune_operator.progress.pace import Pace
from finetune_operator.progress.pods import identify_pod
from finetune_operator.progress.relay import Relay
from finetune_operator.progress.server import ProgressServer
from finetune_operator.progress.tokens import TokenReviewer

_GRACE_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
_RETRY_SECONDS = 5.0
_STOP_SECONDS = 2.0
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
        self._pace = Pace(lambda: progress_interval(self.store.num_reporting()).total_seconds())
        self._has_store = False
        self.health = Health(settings.resync_seconds + _GRACE_SECONDS, self.queue.longest_running_seconds)

    async def run(self) -> None:
        """Serve HTTP, wait for the lease, and act until cancelled. Raises LostLease among others."""
        await _load_cluster_config()
        settings = self.settings
        metrics = self._certificate("metrics", settings.metrics_certificate, settings.metrics_key)
        progress = self._certificate(
            "progress", settings.progress_certificate, settings.progress_key, settings.progress_ca
        )
        async with client.ApiClient() as api, contextlib.AsyncExitStack() as stack:
            api.user_agent = _USER_AGENT
            watched = settings.watch_namespace or None
            cluster = KubernetesCluster(api, watched, self.leadership.holds, self._count_request)
            for app, port, certificate in self._servers(cluster, metrics, progress):
                await stack.enter_async_context(served(app, port, certificate.server if certificate else None))
            async with asyncio.TaskGroup() as group:
                group.create_task(follow(each for each in (metrics, progress) if each is not None))
                await self._lead(api, cluster, lambda: settings.pod_settings(progress.authority if progress else ""))

    def _certificate(
        self, name: str, file: Path | None, key: Path | None, ca: Path | None = None
    ) -> Certificate | None:
        """What a server shows; the metrics tell its end, whether this replica leads or not."""
        if file is None or key is None:
            return None
        certificate = Certificate(file, key, ca)
        self.metrics.watch_certificate(name, lambda: certificate.ends)
        return certificate

    def _servers(
        self, cluster: KubernetesCluster, metrics: Certificate | None, progress: Certificate | None
    ) -> Iterator[tuple[web.Application, int, Certificate | None]]:
        """What this replica serves, at which port, and by which certificate."""
        settings, scraped = self.settings, metrics_routes(self.registry)
        health = health_routes(self.health.unhealthy, self.health.not_ready)
        yield make_app(health if metrics else [*health, *scraped]), settings.http_port, None
        if metrics is not None:
            yield make_app(scraped, [readers_only(make_reviewer(cluster))]), settings.metrics_port, metrics
        if progress is not None:
            yield self._progress_app(cluster, progress), settings.progress_port, progress

    async def _lead(self, api: client.ApiClient, cluster: KubernetesCluster, pods: Callable[[], PodSettings]) -> None:
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
                await self._act(cluster, pods)
        finally:
            if leads.is_set():
                await release(api, self.settings.operator_namespace, identity, self.leadership)

    async def _act(self, cluster: KubernetesCluster, pods: Callable[[], PodSettings]) -> None:
        """What the leader does; when any part of it fails, all of it ends."""
        reconciler = Reconciler(
            self.store,
            cluster,
            pods,
            lambda: datetime.now(UTC),
            instance=self._name,
            applied=self.metrics.plan_applied,
            others_wait=lambda: len(self.queue) > 0,
            failures=self.queue.failures,
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
        self.health.leads()
        while True:
            try:
                await resync(cluster, self.store, self.queue, grace_seconds=0)
            except ClusterError as error:
                logger.warning("the first list failed: %s; again in %.0f s", error, _RETRY_SECONDS)
                self.health.list_failed(str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self.health.resynced(missed=0)
                return

    async def _keep_resyncing(self, cluster: KubernetesCluster) -> None:
        while True:
            # With jitter, so that several operators do not list at the same moment for ever.
            await asyncio.sleep(self.settings.resync_seconds * random.uniform(0.9, 1.1))
            try:
                self.health.resynced(await resync(cluster, self.store, self.queue, _GRACE_SECONDS, _PAUSE_SECONDS))
            except ClusterError as error:
                logger.warning("the resync failed: %s", error)

    def _progress_app(self, cluster: KubernetesCluster, certificate: Certificate) -> web.Application:
        """Takes the trainers' reports. Only the leader has the store they go into; the others pass them on to it."""
        settings = self.settings
        reviewer = TokenReviewer(cluster, PROGRESS_AUDIENCE, identify_pod)
        server = ProgressServer(self.store, reviewer, self._reported, self._count_report)
        relay = Relay(
            acts=lambda: self._has_store and self.leadership.holds(),
            leader=lambda: address_in(self.leadership.holder),
            tls=lambda: certificate.client,
            server_name=urlsplit(settings.progress_url).hostname or "",
        )
        return server.app([relay.middleware()])

    def _reported(self, key: Key, is_first: bool) -> None:
        """A job has news: Prometheus sees it at once, its status soon."""
        self.queue.add_after(key, self._pace.delay(is_first))

    def _count_report(self, code: str) -> None:
        self.metrics.reports.labels(code).inc()

    def _count_request(self, method: str, code: str) -> None:
        self.metrics.requests.labels(method, code).inc()


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
