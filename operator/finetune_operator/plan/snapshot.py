"""What is observed of a job at one moment: slim, frozen, read from API objects once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.v1alpha1.status import Progress
from finetune_operator.plan.containers import OtherContainer, troubled_others
from finetune_operator.plan.names import CONTAINER, FIRST_INDEX, KUEUE_QUEUE_LABEL, SHAPE_ANNOTATION

KubernetesObject = Mapping[str, Any]

_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_BACKOFF_LIMIT = 6
"""Kubernetes' own default."""
_FINALIZERS_OF_DELETION = frozenset({"foregroundDeletion", "orphan"})
"""Kubernetes' own: the garbage collector takes them away."""
_BEGINNING_OF_TIME = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class ObservedFineTuneJob:
    """The FineTuneJob itself."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: int
    created: datetime
    spec: Mapping[str, Any]
    """As stored; it is parsed when planning, so that an unreadable one becomes a condition."""
    status: Mapping[str, Any] = field(default_factory=dict)
    being_deleted: bool = False

    @property
    def is_to_stand_still(self) -> bool:
        """Whether it is to be suspended; that can be told of a spec which is not understood, too."""
        return self.spec.get("suspend") is True

    @property
    def output_uri(self) -> str:
        """Where its output goes; empty where that is not understood."""
        output = self.spec.get("output")
        uri = output.get("uri") if isinstance(output, Mapping) else None
        return uri if isinstance(uri, str) else ""


@dataclass(frozen=True, slots=True)
class ObservedJob:
    """The batch/v1 Job."""

    uid: str
    resource_version: int
    owner_uid: str | None
    nodes: int
    """Its completions: one pod each."""
    queue: str
    """The queue that Kueue's label names; Kueue alone then starts it. Empty where there is no such label."""
    shape: str
    """What of the spec it was made for (plan/shape.py); empty when an earlier release made it."""
    backoff_limit: int
    active_deadline_seconds: int | None
    suspended: bool
    start_time: datetime | None
    """Since when it makes pods; None while it is suspended."""
    num_pods: int
    """Pods that start or run, or have succeeded."""
    complete: bool
    """Whether it is Complete, or will be when the pods that its success leaves over have stopped."""
    failed_reason: str | None
    """Reason of the Failed (or FailureTarget) condition, when it is True."""
    failed_message: str
    ended_at: datetime | None
    """When it was found complete or failed."""
    deleted_at: datetime | None
    """When somebody deleted it; it is there until its pods are gone, and until its finalizers are."""
    held_by: tuple[str, ...]
    """Finalizers that are not Kubernetes' own."""

    @property
    def has_ended(self) -> bool:
        """Whether the Job is complete or failed, or sure to be."""
        return self.complete or self.failed_reason is not None

    @property
    def being_deleted(self) -> bool:
        """Whether it is about to go."""
        return self.deleted_at is not None


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """A training pod."""

    name: str
    uid: str
    job_uid: str | None
    """The Job that controls it; None for an orphan."""
    index: str
    """The node of the job that it is, as the Job controller numbers them."""
    phase: str
    created: datetime
    started: datetime | None
    """When the trainer's container was started."""
    scheduled: bool | None
    """The PodScheduled condition; None when there is none yet."""
    scheduled_at: datetime | None
    """When it got a node."""
    scheduling_message: str
    image: str
    waiting_reason: str
    waiting_message: str
    exit_code: int | None
    terminated_reason: str
    termination_message: str
    disrupted: bool
    pod_reason: str
    pod_message: str
    """What the kubelet says of that."""
    node: str
    """The machine it is on; empty before it has one."""
    stops_by: datetime | None
    """When it is to be gone; None while nobody has deleted it."""
    trained_until: datetime | None
    """When the trainer's container ended."""
    others_running: tuple[str, ...]
    """Containers that run beside the trainer's, such as a mesh's."""
    others_troubled: tuple[OtherContainer, ...]
    """Containers beside the trainer's, and before it, that wait or have failed."""

    @property
    def is_first(self) -> bool:
        """Whether it is the node that speaks for the job: it alone reports, and has the result."""
        return self.index == FIRST_INDEX

    @property
    def being_deleted(self) -> bool:
        """Whether it was told to stop."""
        return self.stops_by is not None

    @property
    def has_ended(self) -> bool:
        """Whether its containers have ended for good."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def is_living(self) -> bool:
        """Whether it runs or may still start."""
        return not self.has_ended and not self.being_deleted


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a plan is made from."""

    job: ObservedFineTuneJob
    child: ObservedJob | None = None
    pods: tuple[ObservedPod, ...] = ()
    """The pods of its own Job, in the order of their creation."""
    leftover: str = ""
    """A pod of an earlier Job under this name that has not ended yet."""
    progress: Progress | None = None
    """The newest report, from the progress server."""
    num_reporting: int = 0
    """How many jobs report, this one or others."""
    restarts: int = 0
    """How often pods were replaced, also those that are gone."""
    obstacle: str = ""
    """Why a child could not be made or changed just now."""

    @property
    def own_child(self) -> ObservedJob | None:
        """The Job, if it is this FineTuneJob's and no other's under the same name."""
        return self.child if self.child is not None and self.child.owner_uid == self.job.uid else None


def observe_job(body: KubernetesObject) -> ObservedJob:
    """A Job from the API."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    true = {entry["type"]: entry for entry in status.get("conditions", ()) if entry["status"] == "True"}
    success = true.get("Complete") or true.get("SuccessCriteriaMet")
    failure = _failure(true.get("Failed") or true.get("FailureTarget"), metadata)
    end = success or failure or {}
    return ObservedJob(
        uid=metadata["uid"],
        resource_version=version_of(body),
        owner_uid=_controller_uid(metadata),
        nodes=spec.get("completions") or 1,
        queue=metadata.get("labels", {}).get(KUEUE_QUEUE_LABEL, ""),
        shape=metadata.get("annotations", {}).get(SHAPE_ANNOTATION, ""),
        backoff_limit=spec.get("backoffLimit", _BACKOFF_LIMIT),
        active_deadline_seconds=spec.get("activeDeadlineSeconds"),
        suspended=bool(spec.get("suspend")),
        start_time=_optional_time(status.get("startTime")),
        num_pods=status.get("active", 0) + status.get("succeeded", 0),
        complete=success is not None,
        failed_reason=None if failure is None else failure.get("reason") or "JobFailed",
        failed_message=(failure or {}).get("message", ""),
        ended_at=_optional_time(end.get("lastTransitionTime")),
        deleted_at=_optional_time(metadata.get("deletionTimestamp")),
        held_by=tuple(name for name in metadata.get("finalizers", ()) if name not in _FINALIZERS_OF_DELETION),
    )


def _failure(condition: KubernetesObject | None, metadata: KubernetesObject) -> KubernetesObject | None:
    """What a Job failed for. That pods are killed because it is deleted is no failure, though it is counted as one."""
    deleted = metadata.get("deletionTimestamp")
    if condition is None or deleted is None or condition.get("reason") != "BackoffLimitExceeded":
        return condition
    return None if parse_time(condition["lastTransitionTime"]) >= parse_time(deleted) else condition


def observe_pod(body: KubernetesObject) -> ObservedPod:
    """A pod from the API."""
    metadata, status = body["metadata"], body.get("status", {})
    conditions = {entry["type"]: entry for entry in status.get("conditions", ())}
    statuses = status.get("containerStatuses", ())
    status_of_trainer = _status_of_trainer(statuses)
    state = status_of_trainer.get("state", {})
    waiting, terminated = state.get("waiting", {}), state.get("terminated", {})
    started = (state.get("running") or terminated).get("startedAt")
    scheduled = conditions.get("PodScheduled")
    is_scheduled = None if scheduled is None else scheduled["status"] == "True"
    return ObservedPod(
        name=metadata["name"],
        uid=metadata["uid"],
        job_uid=_controller_uid(metadata),
        index=metadata.get("annotations", {}).get(_INDEX_ANNOTATION, ""),
        phase=status.get("phase", "Pending"),
        created=parse_time(metadata["creationTimestamp"]),
        started=_optional_time(started),
        scheduled=is_scheduled,
        scheduled_at=_optional_time((scheduled or {}).get("lastTransitionTime")) if is_scheduled else None,
        scheduling_message=(scheduled or {}).get("message", ""),
        image=status_of_trainer.get("image", ""),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        exit_code=terminated.get("exitCode"),
        terminated_reason=terminated.get("reason", ""),
        termination_message=terminated.get("message", ""),
        disrupted=conditions.get("DisruptionTarget", {}).get("status") == "True",
        pod_reason=status.get("reason", ""),
        pod_message=status.get("message", ""),
        node=body.get("spec", {}).get("nodeName", ""),
        stops_by=_optional_time(metadata.get("deletionTimestamp")),
        trained_until=_optional_time(terminated.get("finishedAt")),
        others_running=tuple(
            each["name"] for each in statuses if each is not status_of_trainer and "running" in each.get("state", {})
        ),
        others_troubled=troubled_others(body.get("spec", {}), status),
    )


def _controller_uid(metadata: KubernetesObject) -> str | None:
    owners = metadata.get("ownerReferences", ())
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def version_of(body: KubernetesObject) -> int:
    """Versions of one kind can be compared, also those of an object and of its successor under the same name."""
    return int(body["metadata"]["resourceVersion"])


def parse_time(text: str) -> datetime:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(text)


def _optional_time(text: str | None) -> datetime | None:
    """A timestamp that may be none: of a container that never started, a runtime writes the beginning of its time."""
    moment = parse_time(text) if text else None
    return moment if moment is not None and moment > _BEGINNING_OF_TIME else None


def _status_of_trainer(statuses: Iterable[KubernetesObject]) -> KubernetesObject:
    """The status of our container: a mesh may have put its own beside it."""
    return next((status for status in statuses if status.get("name") == CONTAINER), {})
