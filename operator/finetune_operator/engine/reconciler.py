"""Brings one FineTuneJob to what is planned for it: children first, then the status, then its events.

Safe to repeat at any point.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from finetune_operator.cluster.client import (
    EVENTS,
    FINE_TUNE_JOBS,
    JOBS,
    PODS,
    RESOURCE_OF_KIND,
    AlreadyThere,
    Cluster,
    ClusterError,
    Conflict,
    Gone,
    KubernetesObject,
    Refused,
    Unreached,
    WebhookFailed,
)
from finetune_operator.engine.store import Key, Store
from finetune_operator.plan.builders.event import build_event
from finetune_operator.plan.names import JOB_NAME_LABEL
from finetune_operator.plan.patch import merge_patch
from finetune_operator.plan.plan import Plan, make_plan
from finetune_operator.plan.settings import PodSettings
from finetune_operator.plan.snapshot import Snapshot
from finetune_operator.plan.status import ends_unheard

logger = logging.getLogger(__name__)

FAILURES_TOLD = 3
"""An error that may pass stands in the status when it came so often in a row: the first two pass within seconds."""


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Reads the store, not the cluster; writes the cluster, and puts each answer into the store at once.

    It reads the cluster only where an answer says that the store is behind, where a Job is not ours and unwatched, and
    before an end is written without its cause.
    """

    store: Store
    cluster: Cluster
    settings: Callable[[], PodSettings]
    """Those of new pods: the authority that they are given may be replaced while the operator runs."""
    now: Callable[[], datetime]
    instance: str = "finetune-operator"
    """This replica's name in events."""
    applied: Callable[[Snapshot, Plan], None] = lambda snapshot, plan: None
    """Told of every plan whose status was written, for the metrics."""
    others_wait: Callable[[], bool] = lambda: False
    """Whether other keys are queued."""
    failures: Callable[[Key], int] = lambda key: 0
    """How often in a row a key has failed."""
    _offered: dict[Key, list[str]] = field(default_factory=dict)
    """Which pod was a job's first when its Service was last offered again."""

    async def reconcile(self, key: Key) -> timedelta | None:
        """Apply the plan for a key; returns when to come again. Raises ClusterError."""
        snapshot = self.store.snapshot(key)
        if snapshot is not None and snapshot.child is not None and snapshot.own_child is None:
            await self._refresh_child(key, snapshot.child.uid)  # no watch may tell of its end
            snapshot = self.store.snapshot(key)
        now = self.now()  # one moment for both: the wait for last words must not end between the look and the plan
        snapshot = await self._heard_out(key, snapshot, now)
        if snapshot is None:
            self._offered.pop(key, None)
            return None
        settings = self.settings()
        plan = make_plan(snapshot, settings, now)
        await self._bring_about(key, snapshot, plan, now)
        if plan.create and self.others_wait():
            return timedelta()  # the status comes after their Jobs: of a thousand at once, pods start much sooner
        if plan.create and (found := self.store.snapshot(key)) is not None and found.child is not None:
            # The Job may have been there already: whose it is, and how far, is judged before anything is said of it.
            found = await self._heard_out(key, found, now) or found
            plan = replace(make_plan(found, settings, now), create=())
            snapshot = found
            await self._bring_about(key, snapshot, plan, now)
        if plan.delete_self:
            await self._delete(key, snapshot)
        await self._write_status(key, snapshot, plan)
        return plan.requeue_after

    async def _bring_about(self, key: Key, snapshot: Snapshot, plan: Plan, now: datetime) -> None:
        """Do what is planned for the children. Users read the job, not our log: what is in the way is told there."""
        try:
            await self._apply_to_children(key, snapshot, plan)
            await self._restore(key, snapshot, plan)
        except ClusterError as error:
            if self._is_in_the_way(key, error):
                stopped = replace(snapshot, obstacle=str(error))
                await self._write_status(key, stopped, make_plan(stopped, self.settings(), now))
            raise

    def _is_in_the_way(self, key: Key, error: ClusterError) -> bool:
        """Whether an error will not pass by itself.

        What only crosses another change or meets a busy API server does, and a write for each job would add to that.
        """
        if isinstance(error, (Gone, Conflict, Unreached)):
            return False
        return isinstance(error, (Refused, WebhookFailed)) or self.failures(key) >= FAILURES_TOLD - 1

    async def _apply_to_children(self, key: Key, snapshot: Snapshot, plan: Plan) -> None:
        for body in plan.create:
            await self._create(key, body)
        child = snapshot.child
        if child is None:
            return
        try:
            if plan.change_child:
                # The UID makes the API server refuse the change for another Job under the same name.
                change = {"metadata": {"uid": child.uid}, "spec": plan.change_child}
                self.store.put_job(await self.cluster.merge_patch(JOBS, key.namespace, key.name, change))
            if plan.delete_child is not None:
                # In the foreground: the Job is there until its pods are gone, and so no successor's pods meet them.
                # And only as it was seen: one that has ended meanwhile has last words that would go with it.
                seen = {"uid": plan.delete_child, "resourceVersion": str(child.resource_version)}
                await self.cluster.delete(JOBS, key.namespace, key.name, seen, foreground=True)
        except (Gone, Conflict):
            await self._refresh_child(key, child.uid)
            raise

    async def _restore(self, key: Key, snapshot: Snapshot, plan: Plan) -> None:
        """Make again what pods lost. It comes last: that it is refused holds up no change.

        A Service may well be there, and a full quota refuses it all the same: it is offered once to each set of pods,
        and nothing is said of it. A claim that the scheduler misses is missing.
        """
        first = [pod.uid for pod in snapshot.pods if pod.is_first][-1:]
        for body in plan.restore:
            if body["kind"] != "Service":
                await self._create(key, body)
            elif self._offered.get(key) != first:
                try:
                    await self._create(key, body)
                except Refused as error:
                    logger.info("%s/%s: its Service is not made again: %s", *key, error)
                self._offered[key] = first

    async def _write_status(self, key: Key, snapshot: Snapshot, plan: Plan) -> None:
        """Write what differs, if it is still the state that was planned for: a stale plan must not undo an end."""
        if plan.status is None:
            return
        job = snapshot.job
        version = {"uid": job.uid, "resourceVersion": str(job.resource_version)}
        patch = {"metadata": version, "status": merge_patch(job.status, plan.status)}
        try:
            answer = await self.cluster.merge_patch(FINE_TUNE_JOBS, key.namespace, key.name, patch, "status")
        except Gone:
            self.store.drop_fine_tune_job(key, job.uid)
            return
        except Conflict:
            await self._refresh_fine_tune_job(key, job.uid)
            raise
        self.store.update_fine_tune_job(answer, plan.status)
        self.applied(snapshot, plan)
        await self._post_events(key, snapshot, plan)

    async def _post_events(self, key: Key, snapshot: Snapshot, plan: Plan) -> None:
        """Tell people; nothing depends on it, so one try has to do."""
        for event in plan.events:
            body = build_event(snapshot.job, event, self.instance, self.now())
            try:
                await self.cluster.create(EVENTS, key.namespace, body)
            except ClusterError as error:
                logger.info("%s/%s: the event %s is not posted: %s", *key, event.reason, error)

    async def _create(self, key: Key, body: KubernetesObject) -> None:
        """Create a child. One that is there already is noted and judged by its owner in the next plan."""
        try:
            answer = await self.cluster.create(RESOURCE_OF_KIND[body["kind"]], key.namespace, body)
        except AlreadyThere:
            if body["kind"] != "Job":
                return
            answer = await self.cluster.get(JOBS, key.namespace, key.name)
            logger.info("%s/%s: the Job exists already", *key)
        if body["kind"] == "Job":
            self.store.put_job(answer)

    async def _delete(self, key: Key, snapshot: Snapshot) -> None:
        try:
            await self.cluster.delete(FINE_TUNE_JOBS, key.namespace, key.name, {"uid": snapshot.job.uid})
        except (Gone, Conflict):
            await self._refresh_fine_tune_job(key, snapshot.job.uid)

    async def _refresh_child(self, key: Key, uid: str) -> None:
        """Read a Job of which the store is behind."""
        try:
            answer = await self.cluster.get(JOBS, key.namespace, key.name)
        except Gone:
            self.store.drop_job(key, uid)
        else:
            self.store.put_job(answer)

    async def _heard_out(self, key: Key, snapshot: Snapshot | None, now: datetime) -> Snapshot | None:
        """The snapshot, made anew from the cluster's pods when an end would be written without its last word."""
        if snapshot is None or not ends_unheard(snapshot, now):
            return snapshot
        await self._refresh_pods(key)
        return self.store.snapshot(key)

    async def _refresh_pods(self, key: Key) -> None:
        """Read the pods of a job of which the store is behind."""
        async for page in self.cluster.list_pages(PODS, f"{JOB_NAME_LABEL}={key.name}", key.namespace):
            for body in page:
                self.store.put_pod(body)

    async def _refresh_fine_tune_job(self, key: Key, uid: str) -> None:
        """Read a FineTuneJob of which the store is behind."""
        try:
            answer = await self.cluster.get(FINE_TUNE_JOBS, key.namespace, key.name)
        except Gone:
            self.store.drop_fine_tune_job(key, uid)
        else:
            self.store.put_fine_tune_job(answer)
