"""Puts the chosen strategy in the place of strategy.auto, so that all that follows sees it as if it had been given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune_api.run import Run
from finetune_api.v1alpha1.status import StrategyChoice
from finetune_api.v1alpha1.strategy import AutoStrategy
from finetune_trainer.auto.choose import Choice, choose, fits, memory_of
from finetune_trainer.auto.facts import Facts
from finetune_trainer.auto.read import read_facts
from finetune_trainer.auto.record import ChoiceRecord
from finetune_trainer.distributed import Ranks, first, gather
from finetune_trainer.progress import ProgressLog
from finetune_trainer.stop import StopFlag
from finetune_trainer.tasks import Task


def resolve(
    auto: AutoStrategy,
    run: Run,
    task: Task,
    directory: Path,
    device: torch.device,
    progress: ProgressLog,
    ranks: Ranks,
    stop: StopFlag,
) -> Run:
    """The run with the strategy that is chosen for it, or was when it first started; the same in every process.

    Raises TrainerError when nothing fits into the memory that is there.
    """
    own = ranks.attend(lambda: read_facts(run, task, directory, device, ranks.size), stop)
    memories = [size for size in gather(ranks, own.device.memory) if size is not None]
    facts = replace(own, device=replace(own.device, memory=min(memories, default=None)))

    def decide() -> dict[str, Any]:
        return _kept_or_made(auto, run, facts, progress).to_json()

    choice = Choice.from_json(first(ranks, decide, stop))
    progress.chosen(StrategyChoice.model_validate({"strategy": choice.strategy.name, "reason": choice.reason}))
    return run.model_copy(update={"spec": run.spec.model_copy(update={"strategy": choice.strategy})})


def _kept_or_made(auto: AutoStrategy, run: Run, facts: Facts, progress: ProgressLog) -> Choice:
    record = ChoiceRecord(run, facts)
    choice = record.load()
    if choice is None:
        choice = choose(facts, auto.prefer)
        record.save(choice)
        progress.note(f"strategy.auto chooses {choice.strategy.name}: {choice.reason}")
        return choice
    progress.note(f"strategy.auto keeps its first choice, {choice.strategy.name}: {choice.reason}")
    if not fits(choice.strategy, facts):
        progress.note(f"memory has changed since: {choice.strategy.name} {memory_of(choice.strategy, facts)}")
    return choice
