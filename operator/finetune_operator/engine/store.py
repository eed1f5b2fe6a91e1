"""What is known of the cluster, slim and in memory: filled by events and by the resync, read by the workers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from finetune_api.v1alpha1.status import Phase, Progress
from finetune_operator.engine.past import Past
from finetune_operator.engine.record import Record, make_record, packed
from finetune_operator.metrics.figures import Figures, JobSample, figures_of
from finetune_operator.plan.names import JOB_NAME_LABEL
from finetune_operator.plan.snapshot import (
    KubernetesObject,
    ObservedFineTuneJob,
    ObservedJob,
    ObservedPod,
    Snapshot,
    observe_job,
    observe_pod,
    version_of,
)

_ENDED = (Phase.COMPLETE, Phase.FAILED)


class Key(NamedTuple):
    """A FineTuneJob by name."""

    namespace: str
    name: str


class Store:
    """The FineTuneJobs, their Jobs and pods, and the newest progress of each."""

    def __init__(self) -> None:
        self._jobs: dict[Key, Record] = {}
        self._children: dict[Key, ObservedJob] = {}
        self._pods: dict[Key, dict[str, tuple[int, ObservedPod]]] = {}
        self._progress: dict[Key, tuple[Progress, Figures]] = {}
        self._past: Past[Key] = Past()
        self._unkept: dict[Key, KubernetesObject] = {}
        """Fields of the last status written that the API server has not kept."""
        self._farewells: dict[Key, dict[str, str]] = {}
        """Of whose end nothing is left but what is known here: the UIDs of the Job ("") and of pods by name."""
        self._deletions: list[set[str]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def uids(self) -> dict[Key, str]:
        """Every FineTuneJob known, and its UID."""
        return {key: record.uid for key, record in self._jobs.items()}

    def child_uids(self) -> dict[Key, str]:
        """Every Job known, by its name, and its UID."""
        return {key: child.uid for key, child in self._children.items()}

    def pod_uids(self) -> dict[tuple[Key, str], str]:
        """Every pod known, by the FineTuneJob it is labelled with and its name, and its UID."""
        return {(key, name): pod.uid for key, pods in self._pods.items() for name, (_, pod) in pods.items()}

    @contextlib.contextmanager
    def noting_deletions(self) -> Iterator[set[str]]:
        """The UIDs of what is dropped meanwhile: a list made at that time still has it, and must not bring it back."""
        deleted: set[str] = set()
        self._deletions.append(deleted)
        try:
            yield deleted
        finally:
            self._deletions.remove(deleted)

    def knows_fine_tune_job(self, body: KubernetesObject) -> bool:
        """Whether this state of a FineTuneJob, or a newer one, is known. A new CRD can make one state read anew."""
        record = self._jobs.get(_key(body))
        if record is None or version_of(body) > record.resource_version:
            return False
        return version_of(body) < record.resource_version or record.spec == packed(body.get("spec", {}))

    def knows_job(self, body: KubernetesObject) -> bool:
        """Whether this state of a Job, or a newer one, is known."""
        known = self._children.get(_key(body))
        return known is not None and version_of(body) <= known.resource_version

    def knows_pod(self, body: KubernetesObject) -> bool:
        """Whether this state of a pod, or a newer one, is known; so is a pod that is no job's."""
        owner = _owner(body)
        known = self._pods.get(owner, {}).get(body["metadata"]["name"]) if owner else None
        return owner is None or (known is not None and version_of(body) <= known[0])

    def put_fine_tune_job(self, body: KubernetesObject) -> Key | None:
        """Note a FineTuneJob; returns its key when something about it is new."""
        if self.knows_fine_tune_job(body):
            return None  # a replayed or repeated event
        key, record = _key(body), make_record(body)
        known = self._jobs.get(key)
        is_another = known is not None and known.uid != record.uid
        if is_another or record.phase in _ENDED:
            self._progress.pop(key, None)  # the last word is in the status
        if is_another:
            self._past.forget(key)
            self._unkept.pop(key, None)
        self._jobs[key] = record
        self._say_farewell(key)
        return key

    def update_fine_tune_job(self, body: KubernetesObject, written: KubernetesObject) -> None:
        """Note the answer to a write of our own; what was dropped meanwhile stays dropped.

        An older CRD does not have each field of the status that was written, and the API server keeps none of those:
        they are kept here, or the next plan would write them again, and the next.
        """
        key = _key(body)
        known = self._jobs.get(key)
        if known is None or known.uid != body["metadata"]["uid"]:
            return
        self.put_fine_tune_job(body)
        self._unkept.pop(key, None)
        if unkept := {field: value for field, value in written.items() if field not in body.get("status", {})}:
            self._unkept[key] = unkept

    def drop_fine_tune_job(self, key: Key, uid: str) -> bool:
        """Forget a FineTuneJob that is gone, if it is the one with that UID; its children go by their own events."""
        self._note_deletion(uid)
        if key not in self._jobs or self._jobs[key].uid != uid:
            return False
        del self._jobs[key]
        self._progress.pop(key, None)
        self._past.forget(key)
        self._unkept.pop(key, None)
        self._say_farewell(key)
        return True

    def put_job(self, body: KubernetesObject) -> Key | None:
        """Note a Job; returns the key of its FineTuneJob when something about it is new."""
        if self.knows_job(body):
            return None
        key, child = _key(body), observe_job(body)
        if (known := self._children.get(key)) is not None and known.uid != child.uid:
            self._keep_restarts(key, known)
        self._children[key] = child
        self._say_farewell(key)
        return key

    def drop_job(self, key: Key, uid: str) -> None:
        """Forget a Job that is gone, if it is the one with that UID: once its end is told, or another would be made."""
        self._note_deletion(uid)
        if key not in self._children or self._children[key].uid != uid:
            return
        if self._ends_untold(key):
            self._farewells.setdefault(key, {})[""] = uid
        else:
            self._keep_restarts(key, self._children.pop(key))

    def put_pod(self, body: KubernetesObject) -> Key | None:
        """Note a pod; returns the key of its FineTuneJob when something about it is new."""
        key = _owner(body)
        if key is None or self.knows_pod(body):
            return None
        self._pods.setdefault(key, {})[body["metadata"]["name"]] = (version_of(body), observe_pod(body))
        return key

    def drop_pod(self, key: Key, name: str, uid: str) -> None:
        """Forget a pod that is gone, if it is the one with that UID: once the end is told, which may be by its word."""
        self._note_deletion(uid)
        pods = self._pods.get(key, {})
        if name in pods and pods[name][1].uid == uid:
            if pods[name][1].has_ended and self._ends_untold(key):
                self._farewells.setdefault(key, {})[name] = uid
                return
            _, pod = pods.pop(name)
            if key in self._jobs:
                self._past.gone(key, pod)
        if not pods:
            self._pods.pop(key, None)

    def may_report(self, key: Key, name: str, uid: str) -> bool:
        """Whether this very pod speaks for a FineTuneJob: that of the first node, through a Job of its own."""
        child, pod = self._own_child(key), self._pods.get(key, {}).get(name)
        if child is None or pod is None:
            return False
        return pod[1].is_first and (pod[1].uid, pod[1].job_uid) == (uid, child.uid)

    def progress(self, key: Key) -> Progress | None:
        """The newest report since the operator started."""
        known = self._progress.get(key)
        return known[0] if known else None

    def num_reporting(self) -> int:
        """How many jobs have reported and have not ended."""
        return len(self._progress)

    def put_progress(self, key: Key, progress: Progress) -> bool:
        """Note a report; False when there is no such job, or it has ended."""
        record = self._jobs.get(key)
        if record is None or record.phase in _ENDED:
            return False
        self._progress[key] = (progress, figures_of(progress, None))
        return True

    def snapshot(self, key: Key) -> Snapshot | None:
        """Everything known of a FineTuneJob, or None when there is none."""
        record = self._jobs.get(key)
        if record is None:
            return None
        child = self._own_child(key)
        pods = sorted((pod for _, pod in self._pods.get(key, {}).values()), key=lambda pod: (pod.created, pod.name))
        own = [pod for pod in pods if child is not None and pod.job_uid == child.uid]
        status = {**self._unkept.get(key, {}), **json.loads(record.status)}
        restarts = _count(status, "restarts")
        if child is not None:
            restarts = self._past.restarts(key, child.uid, own, restarts)
        return Snapshot(
            job=ObservedFineTuneJob(
                namespace=key.namespace,
                name=key.name,
                uid=record.uid,
                generation=record.generation,
                resource_version=record.resource_version,
                created=record.created,
                spec=json.loads(record.spec),
                status=status,
                being_deleted=record.being_deleted,
            ),
            child=self._children.get(key),
            pods=tuple(own),
            leftover=next((pod.name for pod in pods if pod not in own and not pod.has_ended), ""),
            progress=self.progress(key),
            num_reporting=self.num_reporting(),
            restarts=restarts,
        )

    def samples(self) -> Iterator[JobSample]:
        """Every job as the metrics see it. The progress is the newest reported, else the one in status."""
        for key, record in list(self._jobs.items()):
            reported = self._progress.get(key)
            yield JobSample(
                key.namespace, key.name, record.task, record.strategy, record.model, record.phase,
                reported[1] if reported else record.figures, record.times,
            )  # fmt: skip

    def _ends_untold(self, key: Key) -> bool:
        """Whether a Job of a FineTuneJob has ended, of which the status does not tell yet."""
        child = self._own_child(key)
        return child is not None and child.has_ended and self._jobs[key].phase not in _ENDED

    def _own_child(self, key: Key) -> ObservedJob | None:
        """The Job of a FineTuneJob, and none of another's."""
        child, record = self._children.get(key), self._jobs.get(key)
        return child if child is not None and record is not None and child.owner_uid == record.uid else None

    def _say_farewell(self, key: Key) -> None:
        """Forget what is gone, and was kept until the end was told."""
        if key not in self._farewells or self._ends_untold(key):
            return
        for name, uid in self._farewells.pop(key).items():
            if name:
                self.drop_pod(key, name, uid)
            else:
                self.drop_job(key, uid)

    def _keep_restarts(self, key: Key, child: ObservedJob) -> None:
        """Count the restarts of a Job that is gone for good."""
        record = self._jobs.get(key)
        if record is not None and record.uid == child.owner_uid:
            own = [pod for _, pod in self._pods.get(key, {}).values() if pod.job_uid == child.uid]
            self._past.job_gone(key, child.uid, own, _count(json.loads(record.status), "restarts"))

    def _note_deletion(self, uid: str) -> None:
        for deleted in self._deletions:
            deleted.add(uid)


def _key(body: KubernetesObject) -> Key:
    return Key(body["metadata"]["namespace"], body["metadata"]["name"])


def _owner(body: KubernetesObject) -> Key | None:
    """The FineTuneJob that a pod is labelled with."""
    metadata = body["metadata"]
    name = metadata.get("labels", {}).get(JOB_NAME_LABEL)
    return Key(metadata["namespace"], name) if name else None


def _count(value: KubernetesObject, field: str) -> int:
    """A field that is a number."""
    found = value.get(field)
    return found if isinstance(found, int) else 0
