"""Fluent builders of what a plan is made from: API objects, read through the store as the operator reads them.

snapshot(make_job().suspended(), make_child().running_since(at(5)), make_pod().running())
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from contract_cases import valid_job
from finetune_api.exit_codes import ExitCode
from finetune_api.run import Termination
from finetune_api.v1alpha1.status import Progress, Result
from finetune_operator.engine.store import Key, Store
from finetune_operator.plan import names
from finetune_operator.plan.plan import Plan, make_plan
from finetune_operator.plan.settings import PodSettings
from finetune_operator.plan.snapshot import Snapshot

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
DELETED = {"deletionTimestamp": "2026-01-01T12:00:00Z"}
SETTINGS = PodSettings(
    trainer_image="registry.example/trainer:1",
    image_pull_policy="IfNotPresent",
    progress_url="",
    progress_ca="",
    fixed_user=True,
    gpu_runtime_class_name="",
    gpu_tolerations=(),
    ephemeral_storage="50Gi",
)
KEY = Key("team-a", "router")
JOB_UID, CHILD_UID = "job-uid", "child-uid"

KubernetesObject = dict[str, Any]


def at(seconds: float) -> datetime:
    """A moment after NOW."""
    return NOW + timedelta(seconds=seconds)


def text_of(moment: datetime) -> str:
    """A moment as Kubernetes writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class JobBuilder:
    """Builds a FineTuneJob."""

    body: KubernetesObject

    def obj(self) -> KubernetesObject:
        """The API object."""
        return copy.deepcopy(self.body)

    def metadata(self, **fields: Any) -> Self:
        """Fields of the metadata, as in JSON."""
        self.body["metadata"] |= fields
        return self

    def spec(self, **fields: Any) -> Self:
        """Fields of the spec, as in JSON; None removes one."""
        for name, value in fields.items():
            if value is None:
                self.body["spec"].pop(name, None)
            else:
                self.body["spec"][name] = value
        return self

    def suspended(self, value: bool = True) -> Self:
        return self.spec(suspend=value)

    def queue(self, name: str | None = "research") -> Self:
        return self.spec(queueName=name)

    def status(self, status: Mapping[str, Any] | None) -> Self:
        """The status that is stored."""
        self.body["status"] = copy.deepcopy(dict(status or {}))
        return self


@dataclass(frozen=True)
class ChildBuilder:
    """Builds a batch/v1 Job."""

    body: KubernetesObject

    def obj(self) -> KubernetesObject:
        """The API object."""
        return copy.deepcopy(self.body)

    def metadata(self, **fields: Any) -> Self:
        """Fields of the metadata, as in JSON."""
        self.body["metadata"] |= fields
        return self

    def owned_by(self, uid: str | None) -> Self:
        owners = [] if uid is None else [names.owner_reference(self.body["metadata"]["name"], uid)]
        self.body["metadata"]["ownerReferences"] = owners
        return self

    def suspended(self, value: bool = True) -> Self:
        self.body["spec"]["suspend"] = value
        return self

    def queued(self, queue: str = "research", *, admitted: bool = False) -> Self:
        """Under Kueue: suspended until it is admitted."""
        self.body["metadata"]["labels"][names.KUEUE_QUEUE_LABEL] = queue
        return self.suspended(not admitted)

    def nodes(self, number: int) -> Self:
        self.body["spec"] |= {"completions": number, "parallelism": number}
        return self

    def started(self, moment: datetime, active: int = 0) -> Self:
        """Since when it makes pods, and how many of them there are."""
        self.body["status"] |= {"startTime": text_of(moment), "active": active}
        return self

    def complete(self, moment: datetime = NOW, type_: str = "Complete") -> Self:
        return self._ends(type_, moment, "CompletionsReached", "Reached expected number of succeeded pods")

    def fails(
        self,
        moment: datetime = NOW,
        reason: str = "BackoffLimitExceeded",
        message: str = "Job has reached the specified backoff limit",
        type_: str = "Failed",
    ) -> Self:
        return self._ends(type_, moment, reason, message)

    def _ends(self, type_: str, moment: datetime, reason: str, message: str) -> Self:
        condition = {"type": type_, "status": "True", "lastTransitionTime": text_of(moment)}
        self.body["status"].setdefault("conditions", []).append({**condition, "reason": reason, "message": message})
        return self


@dataclass(frozen=True)
class PodBuilder:
    """Builds a training pod."""

    body: KubernetesObject

    def obj(self) -> KubernetesObject:
        """The API object."""
        return copy.deepcopy(self.body)

    def metadata(self, **fields: Any) -> Self:
        """Fields of the metadata, as in JSON."""
        self.body["metadata"] |= fields
        return self

    def of(self, job_uid: str | None) -> Self:
        """The Job that controls it."""
        owners = [] if job_uid is None else [{"kind": "Job", "uid": job_uid, "controller": True}]
        self.body["metadata"]["ownerReferences"] = owners
        return self

    def node(self, index: int) -> Self:
        """Which node of the job it is."""
        self.body["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
        return self

    def created(self, moment: datetime) -> Self:
        self.body["metadata"]["creationTimestamp"] = text_of(moment)
        return self

    def on(self, node: str) -> Self:
        """The machine it was given."""
        self.body.setdefault("spec", {})["nodeName"] = node
        return self

    def stops_by(self, moment: datetime) -> Self:
        """Deleted, and to be gone by then."""
        return self.metadata(deletionTimestamp=text_of(moment))

    def unschedulable(self, message: str) -> Self:
        return self._condition("PodScheduled", "False", NOW, message)

    def scheduled(self, moment: datetime = NOW) -> Self:
        return self._condition("PodScheduled", "True", moment)

    def waiting(self, reason: str, message: str = "") -> Self:
        return self.scheduled()._container({"waiting": {"reason": reason, "message": message}})

    def running(self, since: datetime = NOW) -> Self:
        self.body["status"]["phase"] = "Running"
        return self._container({"running": {"startedAt": text_of(since)}})

    def succeeded(self, word: str = "", since: datetime = NOW) -> Self:
        return self._ended("Succeeded", 0, "Completed", word, since)

    def failed(self, exit_code: int, reason: str = "Error", word: str = "", since: datetime = NOW) -> Self:
        return self._ended("Failed", exit_code, reason, word, since)

    def disrupted(self, reason: str = "") -> Self:
        """Removed from its node, before it could say a word."""
        self.body["status"] |= {"phase": "Failed", "reason": reason}
        return self._condition("DisruptionTarget", "True", NOW)

    def held(self) -> Self:
        """Its trainer has ended, and a mesh's container runs on."""
        self.body["status"]["phase"] = "Running"
        return self

    def rejected(self, reason: str, message: str = "") -> Self:
        """Refused by the kubelet, so that no container ever was."""
        self.body["status"] |= {"phase": "Failed", "reason": reason, "message": message}
        return self

    def failed_before_its_start(self) -> Self:
        """Ended by an init container that failed."""
        self.body["status"]["phase"] = "Failed"
        return self

    def evicted(self, message: str, exit_code: int = 137) -> Self:
        """Ended by the kubelet for what it did itself, which is no disruption."""
        self.failed(exit_code).body["status"] |= {"reason": "Evicted", "message": message}
        return self

    def beside(self, name: str, state: KubernetesObject, last: KubernetesObject | None = None) -> Self:
        """A container beside the trainer's, instead of the mesh's."""
        trainers = self.body["status"].get("containerStatuses", ())[1:]
        self.body["status"]["containerStatuses"] = [_status(name, state, last), *trainers]
        return self

    def before(
        self,
        name: str,
        state: KubernetesObject,
        last: KubernetesObject | None = None,
        restarts: str | None = None,
        *,
        started: bool = False,
    ) -> Self:
        """An init container, which keeps the others waiting; one that restarts Always is a native sidecar."""
        if "containerStatuses" not in self.body["status"]:
            self._container({"waiting": {"reason": "PodInitializing"}})
        container = {"name": name, "restartPolicy": restarts} if restarts else {"name": name}
        self.body.setdefault("spec", {}).setdefault("initContainers", []).append(container)
        self.body["status"].setdefault("initContainerStatuses", []).append(
            _status(name, state, last) | {"started": started}
        )
        return self

    def _ended(self, phase: str, exit_code: int, reason: str, word: str, since: datetime) -> Self:
        self.body["status"]["phase"] = phase
        times = {"startedAt": text_of(since), "finishedAt": text_of(since)}
        terminated = {"exitCode": exit_code, "reason": reason, "message": word, **times}
        return self._container({"terminated": terminated})

    def _container(self, state: KubernetesObject) -> Self:
        entry = {"name": names.CONTAINER, "image": "registry.example/trainer:1", "state": state}
        # A mesh's container stands beside ours in every one of these pods.
        self.body["status"]["containerStatuses"] = [{"name": "mesh", "state": {"running": {}}}, entry]
        return self

    def _condition(self, type_: str, status: str, moment: datetime, message: str = "") -> Self:
        condition = {"type": type_, "status": status, "lastTransitionTime": text_of(moment), "message": message}
        self.body["status"].setdefault("conditions", []).append(condition)
        return self


def _status(name: str, state: KubernetesObject, last: KubernetesObject | None) -> KubernetesObject:
    return {"name": name, "image": f"registry.example/{name}:1", "state": state, "lastState": last or {}}


def make_job(name: str = KEY.name) -> JobBuilder:
    """A FineTuneJob as it was just created."""
    spec = valid_job()["spec"] | {"output": {"uri": "pvc://models/router"}}
    metadata = {
        "name": name,
        "namespace": KEY.namespace,
        "uid": JOB_UID,
        "resourceVersion": "10",
        "generation": 1,
        "creationTimestamp": text_of(NOW),
    }
    return JobBuilder({"metadata": metadata, "spec": spec})


def make_child(job: JobBuilder | None = None) -> ChildBuilder:
    """The Job that is planned for a FineTuneJob, as the API server answers its creation."""
    body = (job or make_job()).obj() | {"status": {}}
    [planned] = [
        child for child in plan_of(JobBuilder(body).suspended(False)).create if child["kind"] == "Job"
    ]  # fmt: skip
    planned["metadata"] |= {"uid": CHILD_UID, "resourceVersion": "20"}
    return ChildBuilder({**planned, "status": {}})


def make_pod(number: int = 0) -> PodBuilder:
    """A pod that the Job controller has just created."""
    metadata = {
        "name": f"{KEY.name}-0-{number}",
        "namespace": KEY.namespace,
        "uid": f"pod-uid-{number}",
        "resourceVersion": str(30 + number),
        "creationTimestamp": text_of(at(number)),
        "labels": names.labels(KEY.name),
    }
    return PodBuilder({"metadata": metadata, "status": {"phase": "Pending"}}).of(CHILD_UID).node(0)


def make_word(code: ExitCode, message: str = "", hint: str = "", **fields: Progress | Result | None) -> str:
    """A trainer's last word."""
    word = Termination.model_validate(
        {"exit_code": code, "reason": code.reason, "message": message, "hint": hint, **fields}
    )
    return word.model_dump_json(by_alias=True, exclude_none=True)


def make_progress(step: int, total_steps: int = 100, **fields: Any) -> Progress:
    """A report."""
    return Progress(step=step, total_steps=total_steps, percent=100 * step // total_steps, **fields)


def snapshot(
    job: JobBuilder,
    child: ChildBuilder | None = None,
    *pods: PodBuilder,
    progress: Progress | None = None,
    obstacle: str = "",
) -> Snapshot:
    """What the operator knows when it has seen these objects."""
    store = Store()
    key = store.put_fine_tune_job(job.obj())
    assert key is not None
    if child is not None:
        store.put_job(child.obj())
    for pod in pods:
        store.put_pod(pod.obj())
    if progress is not None:
        store.put_progress(key, progress)
    found = store.snapshot(key)
    assert found is not None
    return replace(found, obstacle=obstacle)


def plan_of(
    job: JobBuilder,
    child: ChildBuilder | None = None,
    *pods: PodBuilder,
    now: datetime = NOW,
    progress: Progress | None = None,
    obstacle: str = "",
) -> Plan:
    """What is planned when these objects are seen."""
    return make_plan(snapshot(job, child, *pods, progress=progress, obstacle=obstacle), SETTINGS, now)


def touches_children(plan: Plan) -> bool:
    """Whether anything is done about the Job and what belongs to it."""
    return bool(plan.create) or bool(plan.change_child) or plan.delete_child is not None


def conditions_of(status: Mapping[str, Any] | None) -> dict[str, tuple[str, str]]:
    """Each condition's status and reason, by type."""
    return {entry["type"]: (entry["status"], entry["reason"]) for entry in (status or {}).get("conditions", ())}


def message_of(status: Mapping[str, Any] | None, type_: str) -> str:
    """A condition's message."""
    return next(str(entry["message"]) for entry in (status or {})["conditions"] if entry["type"] == type_)


def reasons_of(plan: Plan) -> list[str]:
    """The reasons of the planned events."""
    return [event.reason for event in plan.events]
