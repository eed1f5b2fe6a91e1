"""Counts restarts: how often a pod that ended badly got a successor. Pods tell, so it is the same in whatever order."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api.exit_codes import ExitCode
from finetune_operator.plan.diagnosis import was_removed
from finetune_operator.plan.snapshot import ObservedPod


def ended_badly(pod: ObservedPod) -> bool:
    """Whether a pod failed, or was removed from its node; a trainer that was told to stop, and did, is well."""
    if was_removed(pod):
        return pod.phase != "Succeeded"
    return pod.phase == "Failed" and pod.exit_code != ExitCode.STOPPED


def count_restarts(pods: Iterable[ObservedPod]) -> int:
    """The pods of one Job that ended badly, without the newest of each node: that one has no successor yet."""
    nodes: dict[str, list[ObservedPod]] = {}
    for pod in pods:
        nodes.setdefault(pod.index, []).append(pod)
    return sum(_replaced(tries) for tries in nodes.values())


def _replaced(tries: list[ObservedPod]) -> int:
    # A successor is made only when its predecessor has ended, which may be within the same second.
    newest = max(tries, key=lambda pod: (pod.created, not pod.has_ended, pod.name))
    return sum(ended_badly(pod) for pod in tries if pod is not newest)
