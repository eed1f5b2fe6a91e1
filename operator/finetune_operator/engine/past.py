"""What has been of a job's pods and is gone from the cluster: a pod that was removed from its node goes with it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from finetune_operator.plan.restarts import count_restarts, ended_badly
from finetune_operator.plan.snapshot import ObservedPod

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Past:
    job_uid: str
    """The Job whose pods they are."""
    gone: dict[str, ObservedPod] = field(default_factory=dict)
    """Its pods that ended badly and are gone, by UID: a late event may tell of one again."""
    earlier: int = 0
    """Restarts that no pod tells of any more, as the status had them."""


class Past(Generic[Key]):
    """Counts the restarts of each job. Only jobs of which something is gone take memory."""

    def __init__(self) -> None:
        self._of: dict[Key, _Past] = {}

    def gone(self, key: Key, pod: ObservedPod) -> None:
        """A pod is no longer in the cluster."""
        if pod.job_uid is None or not ended_badly(pod):
            return
        past = self._of_job(key, pod.job_uid)
        past.gone[pod.uid] = pod
        self._of[key] = past

    def restarts(self, key: Key, job_uid: str, pods: Sequence[ObservedPod], written: int) -> int:
        """How often pods were replaced, over all of a job's Jobs; `written` is what its status says."""
        past = self._of_job(key, job_uid)
        told = count_restarts({**past.gone, **{pod.uid: pod for pod in pods}}.values())
        if written - told > past.earlier:
            past.earlier = written - told
            self._of[key] = past
        return past.earlier + told

    def job_gone(self, key: Key, job_uid: str, pods: Sequence[ObservedPod], written: int) -> None:
        """A Job is no longer in the cluster; another of the same FineTuneJob goes on counting."""
        if earlier := self.restarts(key, job_uid, pods, written):
            self._of[key] = _Past("", earlier=earlier)

    def forget(self, key: Key) -> None:
        """The job itself is gone."""
        self._of.pop(key, None)

    def _of_job(self, key: Key, job_uid: str) -> _Past:
        past = self._of.get(key)
        if past is None or past.job_uid not in ("", job_uid):
            return _Past(job_uid)
        past.job_uid = job_uid
        return past
