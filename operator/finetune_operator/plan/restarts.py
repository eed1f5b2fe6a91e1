"""Counts restarts: how often a job's pods began anew. Pods tell, so it is the same in whatever order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from finetune_api.exit_codes import ExitCode
from finetune_operator.plan.diagnosis import exceeded_its_storage, was_removed
from finetune_operator.plan.snapshot import ObservedPod

_Moment = tuple[datetime, int]
"""A time, and how many pods the node had before: a successor may be made within the same second."""


def ended_badly(pod: ObservedPod) -> bool:
    """Whether a pod failed, or was removed from its node; a trainer that was told to stop, and did, is well."""
    if was_removed(pod) or exceeded_its_storage(pod):
        return pod.phase != "Succeeded"
    return pod.phase == "Failed" and pod.exit_code != ExitCode.STOPPED


def count_restarts(pods: Iterable[ObservedPod]) -> int:
    """The fewest moments that account for every pod of one Job that ended badly and has a successor.

    What ends one node's pod ends the others' with it, as they lose their peer, and a lost machine may end several: that
    is one restart of the job. Pods that follow each other on one node never share a moment.
    """
    nodes: dict[str, list[ObservedPod]] = {}
    for pod in pods:
        nodes.setdefault(pod.index, []).append(pod)
    lives = sorted((life for tries in nodes.values() for life in _bad_lives(tries)), key=lambda life: life[1])
    count, moment = 0, None
    for begin, end in lives:
        # The end of the life that ends first is the latest moment that accounts for it, and so for the most others.
        if moment is None or begin >= moment:
            count, moment = count + 1, end
    return count


def _bad_lives(tries: list[ObservedPod]) -> Iterator[tuple[_Moment, _Moment]]:
    """From when to when each pod of a node was its newest, of those that ended badly; the last has no successor yet."""
    # A successor is made only when its predecessor has ended, which may be within the same second.
    ordered = sorted(tries, key=lambda pod: (pod.created, not pod.has_ended, pod.name))
    moments = [(pod.created, number) for number, pod in enumerate(ordered)]
    for pod, begin, end in zip(ordered, moments, moments[1:], strict=False):
        if ended_badly(pod):
            yield begin, end
