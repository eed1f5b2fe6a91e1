"""What a FineTuneJob from the API says of itself, also one of another release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.job import METRICS_OF_TASK, Task
from finetune_api.v1alpha1.status import ChosenStrategy, ConditionStatus, FineTuneJobStatus, Phase
from finetune_operator.plan.late import HELD_BY_SIDECAR
from finetune_operator.plan.stored import read_status

_CODES = {code.reason: code for code in ExitCode if code != ExitCode.COMPLETE}
_NOT_SEEN = "NotSeen"


@dataclass(frozen=True)
class Facts:
    """One job at one moment."""

    body: Mapping[str, Any]

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.body["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["metadata"]["name"])

    @property
    def created(self) -> datetime:
        """When it was created."""
        return datetime.fromisoformat(self.body["metadata"]["creationTimestamp"])

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec as stored."""
        spec: Mapping[str, Any] = self.body.get("spec", {})
        return spec

    @property
    def trained_spec(self) -> Mapping[str, Any]:
        """The spec, with the strategy that strategy.auto chose."""
        choice = self.status.progress.choice if self.status.progress else None
        if choice is None or "auto" not in self.spec.get("strategy", {}):
            return self.spec
        is_full = choice.strategy == ChosenStrategy.FULL
        chosen: Mapping[str, Any] = {"full": {}} if is_full else {"adapter": {"type": choice.strategy.value}}
        return {**self.spec, "strategy": chosen}

    @cached_property
    def status(self) -> FineTuneJobStatus:
        """The status, as far as it can be read."""
        return read_status(self.body.get("status") or {})

    @property
    def phase(self) -> Phase:
        """Where it stands, in one word."""
        return self.status.phase or Phase.PENDING

    @property
    def has_ended(self) -> bool:
        """Whether it is Complete or has Failed."""
        return self.phase in (Phase.COMPLETE, Phase.FAILED)

    @property
    def cause(self) -> tuple[str, str]:
        """Why it is where it is: one word, and a sentence."""
        types = (self.phase.value, "Reconciling", "Stalled")
        told = {each.type: each for each in self.status.conditions if each.status == ConditionStatus.TRUE}
        found = next((told[type_] for type_ in types if type_ in told), None)
        if found is None:
            return _NOT_SEEN, "the operator has not looked at it yet; is it running, and does it watch this namespace?"
        return found.reason, found.message

    @property
    def exit_code(self) -> int:
        """What `finetune run` would have ended with: 0 only if Complete, 1 for what is no exit code of the trainer."""
        if self.phase == Phase.COMPLETE:
            return ExitCode.COMPLETE
        return _CODES.get(self.cause[0], ExitCode.INTERNAL_ERROR)

    @property
    def state(self) -> str:
        """The phase, with the cause where it is not plain."""
        reason, _ = self.cause
        goes_well = self.phase in (Phase.RUNNING, Phase.COMPLETE) and reason != HELD_BY_SIDECAR
        plain = goes_well or reason in (_NOT_SEEN, "PodsPending")
        return self.phase.value if plain else f"{self.phase.value}: {reason}"

    @property
    def metric(self) -> str:
        """The metric that decides."""
        chosen = self.spec.get("evaluation", {}).get("metric")
        task = self.spec.get("task")
        return str(chosen or (METRICS_OF_TASK[Task(task)][0] if task in set(Task) else "loss"))


def utc_now() -> datetime:
    """The time of what is shown."""
    return datetime.now(UTC)


def age(seconds: float) -> str:
    """How long ago, as kubectl writes it: in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
