"""The rules of strategy.auto: pure, from facts to a strategy and the reason for it.

What each rule rests on is in docs/auto.md; a threshold here is a figure there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.job import Task
from finetune_api.v1alpha1.strategy import AdapterStrategy, AdapterType, FullStrategy, Preference, Strategy
from finetune_trainer.auto import memory
from finetune_trainer.auto.facts import Facts
from finetune_trainer.errors import TrainerError

FULL_FROM_ROWS = 2_500
"""Rows from which full tuning was measured to be ahead of adapters."""
TOKENS_PER_PARAMETER = 2
"""Learnt tokens that a parameter of LoRA can hold: it stores 2 bits, and a token brings about 1."""
HEADROOM = 1.4
"""The memory that has to be there, as a multiple of the estimate, which was down to 0.72 of what was measured."""

FULL = Strategy(full=FullStrategy())
BOTTLENECK = Strategy(adapter=AdapterStrategy(type=AdapterType.BOTTLENECK))
LORA = Strategy(adapter=AdapterStrategy(type=AdapterType.LORA))


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy with its defaults, and why."""

    strategy: Strategy
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"strategy": self.strategy.to_json(), "reason": self.reason}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Choice:
        """From a JSON object. Raises ValueError or LookupError when it is none of a choice."""
        return cls(Strategy.model_validate(content["strategy"]), str(content["reason"]))


def choose(facts: Facts, prefer: Preference) -> Choice:
    """The strategy for a job. Raises TrainerError when nothing fits into the memory that is there."""
    adapters = _adapters(facts)
    candidates = (FULL,) if adapters is None else (FULL, adapters)
    fitting = [strategy for strategy in candidates if fits(strategy, facts)]
    if not fitting:
        raise _nothing_fits(min(candidates, key=lambda strategy: needed_bytes(strategy, facts)), facts)
    if adapters is None:
        return Choice(FULL, f"no place for adapters is known in {facts.model.kind}")
    if len(fitting) == 1:
        [other] = [strategy for strategy in candidates if strategy not in fitting]
        return Choice(fitting[0], f"{other.name} {memory_of(other, facts)}; {fitting[0].name} fits")
    if prefer == Preference.COST:
        share = _size(adapters, facts) / facts.model.parameters
        why = f"prefer is Cost, and adapters train {share:.1%} as many parameters in less time a step"
        return Choice(adapters, why)
    return _most_accurate(adapters, facts)


def needed_bytes(strategy: Strategy, facts: Facts) -> int:
    """The memory that has to be there for a strategy that `choose` may give."""
    is_full = strategy.adapter is None
    needed = memory.full_tuning_bytes(facts) if is_full else memory.adapter_bytes(facts, _size(strategy, facts))
    return round(HEADROOM * needed)


def fits(strategy: Strategy, facts: Facts) -> bool:
    """Whether the memory suffices, or nobody knows how much there is."""
    return facts.device.memory is None or needed_bytes(strategy, facts) <= facts.device.memory


def memory_of(strategy: Strategy, facts: Facts) -> str:
    """What is needed beside what is there, in words that follow a strategy's name."""
    return f"needs about {_gib(needed_bytes(strategy, facts))} of memory and {_gib(facts.device.memory or 0)} are there"


def _most_accurate(adapters: Strategy, facts: Facts) -> Choice:
    """Where both fit and accuracy counts."""
    if facts.has_retention:
        why = "evaluation.retention is given, and adapters leave what the model knew below them as it was"
        return Choice(adapters, why)
    if facts.task == Task.TEXT_GENERATION:
        held = TOKENS_PER_PARAMETER * _size(adapters, facts)
        tokens = f"{facts.units:,} learnt tokens"
        if facts.units <= held:
            why = f"{tokens} are within the {held:,} or so that it can hold, where it is as accurate as full tuning"
            return Choice(adapters, why)
        return Choice(FULL, f"{tokens} are more than the {held:,} or so that {adapters.name} can hold")
    rows = f"{facts.rows:,} training rows"
    if facts.rows < FULL_FROM_ROWS:
        why = f"{rows} are fewer than {FULL_FROM_ROWS:,}, and on few rows adapters overfit less and cost less"
        return Choice(adapters, why)
    return Choice(FULL, f"{rows} are {FULL_FROM_ROWS:,} or more, where full tuning is more accurate, and it fits")


def _adapters(facts: Facts) -> Strategy | None:
    """LoRA for what generates, else bottlenecks where their places in the model are known, else LoRA; or none."""
    if facts.task != Task.TEXT_GENERATION and facts.model.bottleneck_parameters is not None:
        return BOTTLENECK
    return LORA if facts.model.lora_parameters is not None else None


def _size(adapters: Strategy, facts: Facts) -> int:
    is_lora = adapters == LORA
    return (facts.model.lora_parameters if is_lora else facts.model.bottleneck_parameters) or 0


def _nothing_fits(cheapest: Strategy, facts: Facts) -> TrainerError:
    in_evaluation = memory.evaluation_takes_more(facts)
    load = facts.evaluation if in_evaluation else facts.training
    field = "evaluation.batchSize" if in_evaluation else "training.microBatchSize"
    return TrainerError(
        ExitCode.OUT_OF_MEMORY,
        f"spec.strategy.auto: even {cheapest.name} {memory_of(cheapest, facts)}, with {load.rows} rows of up to "
        f"{load.tokens} tokens at once in {'evaluation' if in_evaluation else 'training'}",
        f"set {field} or data.maxLength lower, give more memory, take a smaller model, or give a strategy to try it "
        "all the same",
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
