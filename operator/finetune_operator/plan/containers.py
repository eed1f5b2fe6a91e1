"""What the containers beside the trainer's, and init containers, say that do not start or ended badly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.plan.names import CONTAINER


@dataclass(frozen=True, slots=True)
class OtherContainer:
    """A container that something else has put into the pod, and that waits or has failed."""

    name: str
    image: str
    waiting_reason: str
    waiting_message: str
    exit_code: int | None
    """Of a native sidecar that has not started yet: that of its last try, also while it runs for the next."""
    terminated_reason: str
    termination_message: str
    is_sidecar: bool
    """A native one: an init container that is to run on. However it ends, the pod does not fail for it."""


def troubled_others(spec: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[OtherContainer, ...]:
    """Those of a pod, in the order in which they are started; one that has started or is done has nothing to say."""
    sidecars = {each["name"] for each in spec.get("initContainers", ()) if each.get("restartPolicy") == "Always"}
    statuses = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    others = (_observe(each, each["name"] in sidecars) for each in statuses if each["name"] != CONTAINER)
    return tuple(each for each in others if each.waiting_reason or _ended_badly(each))


def _ended_badly(other: OtherContainer) -> bool:
    """A native sidecar is not to end at all."""
    return other.exit_code is not None if other.is_sidecar else bool(other.exit_code)


def _observe(status: Mapping[str, Any], is_sidecar: bool) -> OtherContainer:
    state = status.get("state", {})
    waiting = state.get("waiting", {})
    # The kubelet tries again and again: what it says between two tries holds during the next, or each were a write.
    tried = status.get("lastState", {}) if is_sidecar and not status.get("started") else {}
    terminated = state.get("terminated") or tried.get("terminated", {})
    return OtherContainer(
        name=status["name"],
        image=status.get("image", ""),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        exit_code=terminated.get("exitCode"),
        terminated_reason=terminated.get("reason", ""),
        termination_message=terminated.get("message", ""),
        is_sidecar=is_sidecar,
    )
