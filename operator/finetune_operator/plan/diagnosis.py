"""Names the cause of what pods do: why they do not start, and why they failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.newer import read_known
from finetune_api.run import Termination
from finetune_operator.plan.containers import OtherContainer
from finetune_operator.plan.snapshot import ObservedJob, ObservedPod

PODS_PENDING = "PodsPending"
_CONFIG_INVALID = "PodConfigInvalid"
_OTHER_FAILED = "OtherContainerFailed"
_KILLED = 137
_IMAGE_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASON = "CreateContainerConfigError"
_CRASHES = "CrashLoopBackOff"
_UNSTARTED_REASONS = frozenset({"CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"})
_MORE_MEMORY = "raise spec.resources.memory or lower spec.training.microBatchSize and spec.evaluation.batchSize"
_DEADLINE = "DeadlineExceeded"
_EVICTED = "Evicted"
_REMOVED_REASONS = frozenset(
    {_EVICTED, "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Terminated", "Shutdown"}
)
_LOST_CONTAINER = "ContainerStatusUnknown"
_LOST_BY_CONTAINERD = ("Unknown", 255)
"""Its reason and exit code of a container that it did not see end, as when its machine starts anew."""
_QUOTED = 500
"""What is quoted of others' words at most, or what to do would be cut off after them."""
_CAUSE = 700
"""What is told at most of a try that failed, for what is said after it."""
_OF_ONE_TRY = re.compile(r'\btime="[^"]*"\s*|\b[0-9a-f]{64}\b')
"""What a container runtime says otherwise at each try: each were a write of status."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause: one word, and what to do about it."""

    reason: str
    message: str


STARTING = Diagnosis(PODS_PENDING, "waiting for pods to run")
"""Nothing is wrong. One cause for creating, scheduling and starting: a healthy start costs one write of status."""


def why_pending(pods: Sequence[ObservedPod], late: Diagnosis | None = None) -> Diagnosis:
    """Why not every pod runs. The pods are in the order of their creation; what is late does not come by itself."""
    waiting = [pod for pod in pods if pod.phase == "Pending" and pod.is_living]
    if cause := next((cause for pod in waiting if (cause := why_waiting(pod))), None):
        return cause
    if late:
        return late
    for pod in waiting:
        if pod.scheduled is False:
            return Diagnosis("Unschedulable", f"{pod.name}: {_beginning(pod.scheduling_message, _QUOTED)}")
    if _lacks_a_node(pods) and (cause := _why_pods_failed(pods)):
        return Diagnosis(cause.reason, f"{_beginning(cause.message, _CAUSE)}; waiting for the next try")
    return STARTING


def why_waiting(pod: ObservedPod) -> Diagnosis | None:
    """Why a container of a pod does not start, the trainer's before others; None where nothing is wrong."""
    if pod.waiting_reason in _IMAGE_REASONS:
        return _image_not_pulled(pod, pod.image)
    if pod.waiting_reason == _CONFIG_REASON:
        hint = "check the secrets named in spec.pod.envFromSecrets"
        return Diagnosis(_CONFIG_INVALID, f"{pod.name}: {_quoted(pod.waiting_message) or _CONFIG_REASON}; {hint}")
    if pod.waiting_reason in _UNSTARTED_REASONS:
        return _unstarted(pod, pod.waiting_message, pod.waiting_reason)
    return next((cause for other in pod.others_troubled if (cause := _why_other_waits(pod, other))), None)


def _why_other_waits(pod: ObservedPod, other: OtherContainer) -> Diagnosis | None:
    if other.waiting_reason in _IMAGE_REASONS:
        return _image_not_pulled(pod, other.image, f" of the container {other.name}")
    if other.waiting_reason == _CONFIG_REASON:
        said = _quoted(other.waiting_message) or _CONFIG_REASON
        hint = "that container is not the job's: mend what adds it to the pod"
        return Diagnosis(_CONFIG_INVALID, f"{pod.name}: the container {other.name}: {said}; {hint}")
    # A native sidecar runs, has ended or waits, in turn: one thing is said of it, without the words of one try.
    if other.is_sidecar and other.terminated_reason in _UNSTARTED_REASONS:
        return _unstarted(pod, other.termination_message, other.terminated_reason, other.name)
    if other.waiting_reason in _UNSTARTED_REASONS:
        return _unstarted(pod, other.waiting_message, other.waiting_reason, other.name)
    if other.waiting_reason == _CRASHES or (other.is_sidecar and other.exit_code is not None):
        return Diagnosis(_OTHER_FAILED, f"{pod.name}: {_how_other_ended(other, 'ends again and again')}")
    return None


def _image_not_pulled(pod: ObservedPod, image: str, of: str = "") -> Diagnosis:
    # Kubernetes alternates between two reasons, with two messages: one is said, or each turn were a write.
    said = f"the image {image}{of} cannot be pulled; check its name, and that the nodes may pull it"
    return Diagnosis("ImagePullFailed", f"{pod.name}: {said}")


def why_failed(child: ObservedJob, pods: Sequence[ObservedPod]) -> Diagnosis:
    """Why the Job failed: what the trainer said last, else what Kubernetes says."""
    if child.failed_reason == _DEADLINE:
        return Diagnosis(_DEADLINE, "the job ran longer than spec.activeDeadlineSeconds")
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
    return why_pod_failed(evicted[-1]) if max(each.values()) > limit else None


def failed_for_good(pod: ObservedPod) -> bool:
    """Whether a pod ended as the Job's podFailurePolicy lets no other pod try again; it asks for disruptions first."""
    has_failed = pod.phase == "Failed" and not pod.disrupted
    return has_failed and any(pod.exit_code == code for code in ExitCode if code.permanent)


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
    return next((cause for pod in failed if (cause := why_pod_failed(pod))), None)


def _distance_from_the_cause(pod: ObservedPod) -> int:
    if exceeded_its_storage(pod):
        return 1
    if was_removed(pod) or pod.exit_code == ExitCode.STOPPED:
        return 2
    if pod.exit_code == ExitCode.PEER_LOST:
        return 3
    return 0 if failed_for_good(pod) else 1


def why_pod_failed(pod: ObservedPod) -> Diagnosis | None:
    """Why a pod failed, by its trainer if that did, else by another container; None where nobody says."""
    # The kernel's word comes first: a trainer that ran out of memory could not say so itself.
    if pod.terminated_reason == "OOMKilled":
        return Diagnosis(
            ExitCode.OUT_OF_MEMORY.reason,
            f"{pod.name} used more than its memory limit; {_MORE_MEMORY}",
        )
    said = _quoted(pod.pod_message)
    if exceeded_its_storage(pod):
        hint = "raise spec.resources.ephemeralStorage, or have the model and the output on claims"
        return Diagnosis(ExitCode.STORAGE_FULL.reason, f"{pod.name} was evicted ({said}); {hint}")
    if was_removed(pod):
        why = [_why_removed(pod), said or (_quoted(pod.termination_message) if _is_lost(pod) else "")]
        return Diagnosis("Preempted", f"{pod.name} was removed from its node ({': '.join(filter(None, why))})")
    if pod.terminated_reason in _UNSTARTED_REASONS:
        return _unstarted(pod, pod.termination_message, pod.terminated_reason)
    if pod.pod_reason == _DEADLINE:
        hint = "that is no deadline of the job: something sets activeDeadlineSeconds of every pod here"
        return Diagnosis(_DEADLINE, f"{pod.name}: {said or 'it ran for too long'}; {hint}")
    if (word := _termination(pod)) and word.exit_code != ExitCode.COMPLETE:
        # The code's own word, not the message's: a condition's reason has to be one word.
        return Diagnosis(word.exit_code.reason, f"{word.message}{f'; {word.hint}' if word.hint else ''}")
    if pod.exit_code is None:
        return _why_others_failed(pod) or _rejected(pod, said)
    if pod.exit_code == ExitCode.COMPLETE:
        return _why_others_failed(pod)
    if pod.exit_code == _KILLED:
        hint = f"most often memory ran out; {_MORE_MEMORY}"
        return Diagnosis(ExitCode.OUT_OF_MEMORY.reason, f"{pod.name} was killed (exit code {_KILLED}); {hint}")
    if pod.exit_code in set(ExitCode):
        code = ExitCode(pod.exit_code)
        return Diagnosis(code.reason, f"{pod.name}: {code.explanation}")
    return Diagnosis("TrainerFailed", f"{pod.name} ended with exit code {pod.exit_code}; its log says more")


def _rejected(pod: ObservedPod, said: str) -> Diagnosis | None:
    """A pod that its node did not take: the scheduler had given it what was no longer there."""
    if not pod.pod_reason:
        return None
    why = ": ".join(filter(None, (pod.pod_reason, said)))
    return Diagnosis("RejectedByNode", f"{pod.name} was rejected by {_node(pod)} ({why})")


def _unstarted(pod: ObservedPod, words: str, reason: str, other: str = "") -> Diagnosis:
    said = _quoted(_OF_ONE_TRY.sub("", words)) or reason
    container = f"the container {other}" if other else "the container"
    return Diagnosis("ContainerNotStarted", f"{pod.name}: {_node(pod)} cannot start {container}: {said}")


def _why_others_failed(pod: ObservedPod) -> Diagnosis | None:
    """The failure of a container that is not the trainer's: the pod fails for it, whatever the trainer did."""
    other = next((each for each in pod.others_troubled if each.exit_code and not each.is_sidecar), None)
    if other is None:
        return None
    if other.terminated_reason in _UNSTARTED_REASONS:
        return _unstarted(pod, other.termination_message, other.terminated_reason, other.name)
    done = "the trainer is done, but " if pod.exit_code == ExitCode.COMPLETE else ""
    return Diagnosis(_OTHER_FAILED, f"{pod.name}: {done}{_how_other_ended(other, 'failed', other.termination_message)}")


def _how_other_ended(other: OtherContainer, what: str, said: str = "") -> str:
    reason = "" if other.terminated_reason == "Error" else other.terminated_reason
    words = (f"exit code {other.exit_code}", reason, _quoted(said))
    return f"the container {other.name} {what} ({', '.join(filter(None, words))}); its log says more"


def _node(pod: ObservedPod) -> str:
    return f"the node {pod.node}" if pod.node else "its node"


def _quoted(words: str) -> str:
    """On one line, and of long words the end: a chain of errors has its cause there."""
    line = " ".join(words.split()).strip(" .")
    return line if len(line) <= _QUOTED else f"... {line[-_QUOTED:]}"


def _beginning(words: str, limit: int) -> str:
    return words if len(words) <= limit else f"{words[:limit]} ..."


def was_removed(pod: ObservedPod) -> bool:
    """Whether a pod was evicted, preempted, or lost with its node."""
    if exceeded_its_storage(pod):
        return False
    return pod.disrupted or pod.pod_reason in _REMOVED_REASONS or _is_lost(pod)


def _why_removed(pod: ObservedPod) -> str:
    """The word for it of a pod that was removed."""
    return pod.pod_reason or (pod.terminated_reason if _is_lost(pod) else "disruption")


def _is_lost(pod: ObservedPod) -> bool:
    """Whether nobody saw how its container ended: the exit code is made up then."""
    return pod.terminated_reason == _LOST_CONTAINER or (pod.terminated_reason, pod.exit_code) == _LOST_BY_CONTAINERD


def exceeded_its_storage(pod: ObservedPod) -> bool:
    """Whether the kubelet evicted a pod for what it wrote itself: alone of its evictions that is no disruption.

    Nor is one of a pod that the node did not let start, because it was short of something already.
    """
    return pod.pod_reason == _EVICTED and not pod.disrupted and pod.exit_code is not None


def _termination(pod: ObservedPod) -> Termination | None:
    try:
        return read_known(Termination, pod.termination_message) if pod.termination_message else None
    except ValidationError:
        return None  # the end of a log, or another program's message
