"""Names the cause of what pods do: why they do not start, and why they failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Termination
from finetune_operator.plan.snapshot import ObservedJob, ObservedPod

PODS_PENDING = "PodsPending"
_KILLED = 137
_IMAGE_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_MORE_MEMORY = "raise spec.resources.memory or lower spec.training.microBatchSize and spec.evaluation.batchSize"
_EVICTED = "Evicted"
_REMOVED_REASONS = frozenset(
    {_EVICTED, "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Terminated", "Shutdown"}
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause: one word, and what to do about it."""

    reason: str
    message: str


STARTING = Diagnosis(PODS_PENDING, "waiting for pods to run")
"""Nothing is wrong. One cause for creating, scheduling and starting: a healthy start costs one write of status."""


def why_pending(pods: Sequence[ObservedPod]) -> Diagnosis:
    """Why no pod runs yet. The pods are in the order of their creation."""
    waiting = [pod for pod in pods if pod.phase == "Pending" and pod.is_living]
    for pod in waiting:
        if pod.waiting_reason in _IMAGE_REASONS:
            # Kubernetes alternates between two of them, with two messages: one is said, or each turn were a write.
            return Diagnosis(
                "ImagePullFailed",
                f"{pod.name}: the image {pod.image} cannot be pulled; check its name, and that the nodes may pull it",
            )
        if pod.waiting_reason in _CONFIG_REASONS:
            hint = "check the secrets named in spec.pod.envFromSecrets"
            return Diagnosis("PodConfigInvalid", f"{pod.name}: {pod.waiting_message or pod.waiting_reason}; {hint}")
    for pod in waiting:
        if pod.scheduled is False:
            return Diagnosis("Unschedulable", f"{pod.name}: {pod.scheduling_message}")
    if _lacks_a_node(pods) and (cause := _why_pods_failed(pods)):
        return Diagnosis(cause.reason, f"{cause.message}; waiting for the next try")
    return STARTING


def why_failed(child: ObservedJob, pods: Sequence[ObservedPod]) -> Diagnosis:
    """Why the Job failed: what the trainer said last, else what Kubernetes says."""
    if child.failed_reason == "DeadlineExceeded":
        return Diagnosis("DeadlineExceeded", "the job ran longer than spec.activeDeadlineSeconds")
    told = Diagnosis(child.failed_reason or "JobFailed", child.failed_message or "the Job failed")
    return _why_pods_failed(pods) or told


def evicted_too_often(pods: Sequence[ObservedPod], limit: int) -> Diagnosis | None:
    """Why a job ends that exceeds its storage at every try, though its Job does not count them.

    A trainer that saves and stops within the second that the kubelet gives it ends as one that was asked to.
    """
    evicted = [pod for pod in pods if exceeded_its_storage(pod)]
    if not evicted or evicted[-1].exit_code != ExitCode.STOPPED:
        return None  # the Job has counted the last one
    each = Counter(pod.index for pod in evicted)
    return _why_pod_failed(evicted[-1]) if max(each.values()) > limit else None


def failed_for_good(pod: ObservedPod) -> bool:
    """Whether a pod ended as the Job's podFailurePolicy lets no other pod try again."""
    return pod.phase == "Failed" and any(pod.exit_code == code for code in ExitCode if code.permanent)


def last_word(pods: Sequence[ObservedPod]) -> Termination | None:
    """What the newest trainer that ended said last; of several nodes, that of the first."""
    return next((word for pod in reversed(pods) if pod.is_first and (word := _termination(pod))), None)


def _lacks_a_node(pods: Sequence[ObservedPod]) -> bool:
    """Whether a node's pod has ended badly and none has followed it yet."""
    manned = {pod.index for pod in pods if pod.is_living or pod.phase == "Succeeded"}
    return any(pod.index not in manned for pod in pods)


def _why_pods_failed(pods: Sequence[ObservedPod]) -> Diagnosis | None:
    """The newest failure with a cause of its own, and before it the one that ended the job for good.

    A pod that was only stopped or removed comes after those, and last one that only lost its peers.
    """
    failed = [pod for pod in reversed(pods) if pod.phase == "Failed"]
    failed.sort(key=_distance_from_the_cause)
    return next((cause for pod in failed if (cause := _why_pod_failed(pod))), None)


def _distance_from_the_cause(pod: ObservedPod) -> int:
    if exceeded_its_storage(pod):
        return 1
    if was_removed(pod) or pod.exit_code == ExitCode.STOPPED:
        return 2
    if pod.exit_code == ExitCode.PEER_LOST:
        return 3
    return 0 if failed_for_good(pod) else 1


def _why_pod_failed(pod: ObservedPod) -> Diagnosis | None:
    # The kernel's word comes first: a trainer that ran out of memory could not say so itself.
    if pod.terminated_reason == "OOMKilled":
        return Diagnosis(
            ExitCode.OUT_OF_MEMORY.reason,
            f"{pod.name} used more than its memory limit; {_MORE_MEMORY}",
        )
    said = pod.pod_message.strip(" .")
    if exceeded_its_storage(pod):
        hint = "raise spec.resources.ephemeralStorage, or have the model and the output on claims"
        return Diagnosis(ExitCode.STORAGE_FULL.reason, f"{pod.name} was evicted ({said}); {hint}")
    if was_removed(pod):
        why = ": ".join(words for words in (pod.pod_reason or "disruption", said) if words)
        return Diagnosis("Preempted", f"{pod.name} was removed from its node ({why})")
    if (word := _termination(pod)) and word.exit_code != ExitCode.COMPLETE:
        # The code's own word, not the message's: a condition's reason has to be one word.
        return Diagnosis(word.exit_code.reason, f"{word.message}{f'; {word.hint}' if word.hint else ''}")
    if pod.exit_code is None:
        return None
    if pod.exit_code == _KILLED:
        hint = f"most often memory ran out; {_MORE_MEMORY}"
        return Diagnosis(ExitCode.OUT_OF_MEMORY.reason, f"{pod.name} was killed (exit code {_KILLED}); {hint}")
    if pod.exit_code in set(ExitCode):
        code = ExitCode(pod.exit_code)
        return Diagnosis(code.reason, f"{pod.name}: {code.explanation}")
    return Diagnosis("TrainerFailed", f"{pod.name} ended with exit code {pod.exit_code}; its log says more")


def was_removed(pod: ObservedPod) -> bool:
    """Whether a pod was evicted, preempted, or lost with its node."""
    return pod.disrupted or (pod.pod_reason in _REMOVED_REASONS and not exceeded_its_storage(pod))


def exceeded_its_storage(pod: ObservedPod) -> bool:
    """Whether the kubelet evicted a pod for what it wrote itself: alone of its evictions that is no disruption."""
    return pod.pod_reason == _EVICTED and not pod.disrupted


def _termination(pod: ObservedPod) -> Termination | None:
    try:
        return Termination.model_validate_json(pod.termination_message) if pod.termination_message else None
    except ValidationError:
        return None  # the end of a log, or another program's message
