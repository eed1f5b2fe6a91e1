"""Plays what the operator meets in a cluster, on a MemoryCluster: the Job controller, a kubelet, Kueue and users.

Each job has a fate that does not depend on the operator: what its user wants in the end, and what its trainer does at
each try. So the state that everything must come to rest in is the same whatever happens on the way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.status import Phase
from finetune_operator.cluster.client import FINE_TUNE_JOBS, JOBS, PODS
from finetune_operator.engine.store import Key
from finetune_operator.plan.names import KUEUE_QUEUE_LABEL
from memory_cluster import MemoryCluster, Object
from plan_builders import make_job, make_progress, make_word
from status_samples import full_status

NAMESPACE = "team-a"
RUNNING_TICKS = 3


@dataclass(frozen=True)
class Try:
    """How a pod goes: to an exit code and a last word, or for ever in a state."""

    exit_code: int | None = None
    reason: str = "Error"
    word: str = ""
    evicted: bool = False
    """For what it wrote itself, which is no disruption."""
    stuck: str = ""
    """Unschedulable, ErrImagePull or Running; empty when it ends."""


def _said(code: ExitCode, message: str) -> Try:
    result = full_status().result if code == ExitCode.COMPLETE else None
    word = make_word(code, message, progress=make_progress(100), result=result)
    return Try(code, "Completed" if code == ExitCode.COMPLETE else "Error", word)


COMPLETES = _said(ExitCode.COMPLETE, "done")
EVICTED = Try(reason="Evicted")
LOSES_PEERS = _said(ExitCode.PEER_LOST, "a peer ended")


@dataclass(frozen=True)
class Fate:
    """What becomes of a job."""

    phase: Phase | None
    """Where it comes to rest; None when it is gone in the end."""
    tries: tuple[Try, ...] = (COMPLETES,)
    spec: dict[str, Any] = field(default_factory=dict)
    """What its user wants in the end."""
    at_first: dict[str, Any] = field(default_factory=dict)
    """What of that they have given otherwise at first."""
    peers: tuple[tuple[Try, ...], ...] = ()
    """The tries of its other nodes: the nth of each goes with the nth of the first."""
    admitted: bool = True
    """Whether Kueue admits it."""
    squatted: bool = False
    """Another's Job has its name."""
    deleted: bool = False
    """Its user deletes it in the end."""


FATES: dict[str, Fate] = {
    "completes": Fate(Phase.COMPLETE),
    "recovers": Fate(Phase.COMPLETE, (_said(ExitCode.NETWORK_UNAVAILABLE, "no route"), COMPLETES)),
    "evicted": Fate(Phase.COMPLETE, (EVICTED, EVICTED, COMPLETES), {"backoffLimit": 0}),
    "bad-data": Fate(Phase.FAILED, (_said(ExitCode.DATA_INVALID, "no rows"),)),
    "killed": Fate(Phase.FAILED, (Try(137),), {"backoffLimit": 1}),
    "no-node": Fate(Phase.PENDING, (Try(stuck="Unschedulable"),)),
    "no-image": Fate(Phase.PENDING, (Try(stuck="ErrImagePull"),)),
    "writes-too-much": Fate(
        Phase.FAILED, (replace(_said(ExitCode.STOPPED, "saved"), evicted=True),), {"backoffLimit": 0}
    ),
    "runs": Fate(Phase.RUNNING, (Try(stuck="Running"),)),
    "suspended": Fate(Phase.SUSPENDED, (Try(stuck="Running"),), {"suspend": True}),
    "changed": Fate(
        Phase.RUNNING,
        (Try(stuck="Running"),),
        {"pod": {"labels": {"team": "b"}}, "backoffLimit": 9},
        {"pod": {"labels": {"team": "a"}}, "backoffLimit": 1},
    ),
    "refused": Fate(
        Phase.FAILED,
        spec={
            "strategy": {"distillation": {"teacher": {"uri": "pvc://models/teacher"}, "relation": {}}},
            "resources": {"gpusPerNode": 2},
        },
    ),
    "squatted": Fate(Phase.PENDING, squatted=True),
    "queued": Fate(Phase.QUEUED, spec={"queueName": "research"}, admitted=False),
    "admitted": Fate(Phase.COMPLETE, spec={"queueName": "research"}),
    "held": Fate(Phase.SUSPENDED, (Try(stuck="Running"),), {"queueName": "research", "suspend": True}),
    "two-nodes": Fate(Phase.COMPLETE, (COMPLETES,), peers=((Try(0),),)),
    "peer-killed": Fate(
        Phase.COMPLETE,
        (LOSES_PEERS, LOSES_PEERS, COMPLETES),
        {"backoffLimit": 2},
        peers=((Try(137), Try(137), Try(0)),),
    ),
    "first-evicted": Fate(
        Phase.COMPLETE, (EVICTED, COMPLETES), {"backoffLimit": 0}, peers=((LOSES_PEERS, Try(0)), (EVICTED, Try(0)))
    ),
    "by-turns": Fate(
        Phase.FAILED, (LOSES_PEERS, Try(1)), {"backoffLimit": 1}, peers=((Try(137), LOSES_PEERS), (LOSES_PEERS,) * 2)
    ),
    "peer-bad-data": Fate(Phase.FAILED, (LOSES_PEERS,), peers=((_said(ExitCode.DATA_INVALID, "no rows"),),)),
    "peer-no-node": Fate(Phase.PENDING, (Try(stuck="Running"),), peers=((Try(stuck="Unschedulable"),),)),
    "two-suspended": Fate(
        Phase.SUSPENDED, (Try(stuck="Running"),), {"suspend": True}, peers=((Try(stuck="Running"),),)
    ),
    "short-lived": Fate(None, spec={"ttlSecondsAfterFinished": 20}),
    "deleted": Fate(None, (Try(stuck="Running"),), deleted=True),
}


class PlayedWorld:
    """Jobs named by their fates, and everything that moves them but the operator."""

    def __init__(
        self,
        cluster: MemoryCluster,
        fates: tuple[str, ...],
        now: Callable[[], datetime],
        report: Callable[[Key, int], None],
    ) -> None:
        self._cluster = cluster
        self._fates = {name: FATES[name] for name in fates}
        self._now = now
        self._report = report
        self._ended: dict[str, int] = dict.fromkeys(fates, 0)
        self._ages: dict[str, int] = {}
        self._pods = 0
        self.created: dict[str, int] = {}
        """How many Jobs were ever made for a FineTuneJob, by its UID."""
        self._seen_jobs: set[str] = set()

    # ---- users ----

    def submit(self, *, suspended: bool = False) -> None:
        """Everyone applies a manifest, some with a wish for later."""
        for name, fate in self._fates.items():
            if fate.squatted:
                self._cluster.add(JOBS, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"suspend": True}})
            spec = {"resources": {"nodes": 1 + len(fate.peers)}, **fate.spec, **fate.at_first}
            job = make_job(name).spec(**spec).obj()
            if suspended:
                job["spec"]["suspend"] = True
            self._cluster.add(FINE_TUNE_JOBS, {"metadata": _metadata(name), "spec": job["spec"]})

    def suspend(self, value: bool) -> None:
        """Everyone changes their mind."""
        for name in self._fates:
            self._edit(name, {"suspend": value})

    def want_in_the_end(self) -> None:
        """Everyone asks for what they will stay with; what takes a new Job, with a suspension."""
        for name, fate in self._fates.items():
            wanted = {field: fate.spec[field] for field in fate.at_first}
            self._edit(name, {**wanted, "suspend": bool(wanted) or bool(fate.spec.get("suspend"))})
            job = self._cluster.find(FINE_TUNE_JOBS, NAMESPACE, name)
            if fate.deleted and job is not None:
                self._cluster.remove(FINE_TUNE_JOBS, job)

    def _resume(self, name: str) -> None:
        """End the suspension that a change was asked for with, when the operator has seen it."""
        job = self._cluster.find(FINE_TUNE_JOBS, NAMESPACE, name)
        if job is None or not self._fates[name].at_first or not self._is_as_wanted(name, job):
            return
        seen = job.get("status", {}).get("observedGeneration") == job["metadata"]["generation"]
        if seen and job["status"]["phase"] == Phase.SUSPENDED:
            self._edit(name, {"suspend": False})

    def _is_as_wanted(self, name: str, job: Object) -> bool:
        return all(job["spec"].get(field) == self._fates[name].spec[field] for field in self._fates[name].at_first)

    def _edit(self, name: str, fields: Object) -> None:
        job = self._cluster.find(FINE_TUNE_JOBS, NAMESPACE, name)
        if job is not None:
            self._cluster.change(FINE_TUNE_JOBS, job, lambda new: new["spec"].update(fields))

    # ---- Kubernetes ----

    def tick(self) -> None:
        """Everything moves one step."""
        self._cluster.collect_garbage()
        for pod in self._cluster.objects(PODS):
            self._move_pod(pod)
        for name in self._fates:
            self._train(name)
            self._resume(name)
        for job in self._cluster.objects(JOBS):
            name = job["metadata"]["name"]
            if any(owner.get("controller") for owner in job["metadata"].get("ownerReferences", ())):
                self._note(job)
                self._move_job(name, job)
        self._judge_pods()

    def _note(self, job: Object) -> None:
        uid, [owner] = job["metadata"]["uid"], job["metadata"]["ownerReferences"]
        if uid not in self._seen_jobs:
            self._seen_jobs.add(uid)
            self.created[owner["uid"]] = self.created.get(owner["uid"], 0) + 1

    def _move_job(self, name: str, job: Object) -> None:
        """As the Job controller, and before it Kueue."""
        pods = [pod for pod in self._cluster.objects(PODS) if _owner(pod) == job["metadata"]["uid"]]
        if "deletionTimestamp" in job["metadata"] or _condition(job, "Complete") or _condition(job, "Failed"):
            return
        actions = [_action(job, pod) for pod in pods if pod["status"]["phase"] == "Failed"]
        failed = actions.count("Count")
        if any(pod["status"]["phase"] == "Succeeded" and _index(pod) == 0 for pod in pods):
            self._end(job, "Complete", "CompletionsReached")
        elif _condition(job, "FailureTarget"):
            self._end(job, "Failed", "PodFailurePolicy")
        elif "FailJob" in actions:
            self._end(job, "FailureTarget", "PodFailurePolicy")
        elif failed > job["spec"]["backoffLimit"]:
            self._end(job, "Failed", "BackoffLimitExceeded")
        else:
            self._cluster.change(JOBS, job, lambda new: new.setdefault("status", {}).update(failed=failed))
            self._start_or_stop(name, [pod for pod in pods if not _has_ended(pod)])

    def _start_or_stop(self, name: str, living: list[Object]) -> None:
        job = self._cluster.find(JOBS, NAMESPACE, name)
        assert job is not None
        if KUEUE_QUEUE_LABEL in job["metadata"]["labels"] and self._fates[name].admitted and job["spec"]["suspend"]:
            self._cluster.change(JOBS, job, lambda new: new["spec"].update(suspend=False))
        elif job["spec"]["suspend"]:
            for pod in living:
                self._cluster.begin_deletion(PODS, pod)
        else:
            for index in set(range(job["spec"]["completions"])) - {_index(pod) for pod in living}:
                self._add_pod(name, job, index)

    def _add_pod(self, name: str, job: Object, index: int) -> None:
        self._pods += 1
        labels = dict(job["spec"]["template"]["metadata"]["labels"])
        owner = {"kind": "Job", "uid": job["metadata"]["uid"], "controller": True}
        metadata = {**_metadata(f"{name}-{index}-{self._pods}"), "labels": labels, "ownerReferences": [owner]}
        metadata["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
        self._cluster.add(PODS, {"metadata": metadata, "spec": {}, "status": {"phase": "Pending"}})

    def _end(self, job: Object, type_: str, reason: str) -> None:
        moment = _text(self._now())
        condition = {"type": type_, "status": "True", "reason": reason, "message": "", "lastTransitionTime": moment}
        self._cluster.change(
            JOBS, job, lambda new: new.setdefault("status", {}).setdefault("conditions", []).append(condition)
        )

    def _move_pod(self, pod: Object) -> None:
        """As the scheduler and the kubelet."""
        if "deletionTimestamp" in pod["metadata"]:
            self._cluster.remove(PODS, pod)
            return
        if _has_ended(pod):
            return
        now_try = self._try_of(pod)
        if now_try.stuck in ("Unschedulable", "ErrImagePull"):
            self._cluster.change(PODS, pod, lambda new: new.update(status=_stuck(now_try.stuck)))
        elif pod["status"]["phase"] != "Running":
            running = {"running": {"startedAt": _text(self._now())}}
            self._cluster.change(PODS, pod, lambda new: new.update(status=_status("Running", running)))

    def _train(self, name: str) -> None:
        """As the trainers of a job: they wait for each other, work together, and end together."""
        pods = [pod for pod in self._cluster.objects(PODS) if _instance(pod) == name and _is_at_work(pod)]
        if {_index(pod) for pod in pods} != set(range(1 + len(self._fates[name].peers))):
            return
        first = min(pods, key=_index)
        uid = first["metadata"]["uid"]
        age = self._ages[uid] = self._ages.get(uid, 0) + 1
        if age <= RUNNING_TICKS or self._try_of(first).stuck:
            self._report(Key(NAMESPACE, name), min(50, 10 * age))
            return
        ends = [(pod, _end_of(self._try_of(pod), self._now())) for pod in pods]
        self._ended[name] += 1
        for pod, status in ends:
            self._cluster.change(PODS, pod, lambda new, status=status: new.update(status=status))

    def _try_of(self, pod: Object) -> Try:
        fate = self._fates[_instance(pod)]
        tries = (fate.tries, *fate.peers)[_index(pod)]
        return tries[min(self._ended[_instance(pod)], len(tries) - 1)]

    def _judge_pods(self) -> None:
        """Two trainers of one node must never be at work at once."""
        at_work = [(_instance(pod), _index(pod)) for pod in self._cluster.objects(PODS) if _is_at_work(pod)]
        assert len(at_work) == len(set(at_work)), at_work


def _metadata(name: str) -> Object:
    return {"name": name, "namespace": NAMESPACE}


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _owner(pod: Object) -> str:
    return next((owner["uid"] for owner in pod["metadata"]["ownerReferences"]), "")


def _instance(pod: Object) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/instance"])


def _index(pod: Object) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def _is_at_work(pod: Object) -> bool:
    return bool(pod["status"]["phase"] == "Running")


def _has_ended(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def _condition(job: Object, type_: str) -> bool:
    return any(entry["type"] == type_ for entry in job.get("status", {}).get("conditions", ()))


def _action(job: Object, pod: Object) -> str:
    """What the Job's own failure policy says of a pod."""
    [state] = [entry["state"] for entry in pod["status"].get("containerStatuses", ())] or [{}]
    exit_code = state.get("terminated", {}).get("exitCode")
    true = {entry["type"] for entry in pod["status"].get("conditions", ()) if entry["status"] == "True"}
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        by_condition = any(wanted["type"] in true for wanted in rule.get("onPodConditions", ()))
        by_code = exit_code in rule.get("onExitCodes", {}).get("values", ())
        if by_condition or by_code:
            return str(rule["action"])
    return "Count"


def _status(phase: str, state: Object) -> Object:
    scheduled = {"type": "PodScheduled", "status": "True"}
    container = {"name": "trainer", "image": "trainer:1", "state": copy.deepcopy(state)}
    return {"phase": phase, "conditions": [scheduled], "containerStatuses": [container]}


def _stuck(reason: str) -> Object:
    if reason == "ErrImagePull":
        return _status("Pending", {"waiting": {"reason": reason}})
    return {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}],
    }


def _end_of(now_try: Try, now: datetime) -> Object:
    if now_try == EVICTED:
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        return {"phase": "Failed", "reason": "Evicted", "conditions": [disrupted]}
    terminated = {
        "exitCode": now_try.exit_code,
        "reason": now_try.reason,
        "message": now_try.word,
        "startedAt": _text(now),
    }
    phase = "Failed" if now_try.exit_code else "Succeeded"
    status = _status(phase, {"terminated": terminated})
    return {**status, "reason": "Evicted", "message": "it wrote too much"} if now_try.evicted else status
