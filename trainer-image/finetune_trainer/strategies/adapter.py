"""Adapter layers: small new layers and the task's head are trained, the model itself is untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task as TaskName
from finetune_api.v1alpha1.strategy import AdapterStrategy, AdapterType
from finetune_trainer.models import Loaded
from finetune_trainer.strategies import Tuning

DEFAULT_RANK = 8
# Of encoders, and of language models, which learn from every token and need smaller steps. In rsLoRA the same rank and
# alpha make a larger update.
LEARNING_RATES: dict[AdapterType, tuple[float, float]] = {
    AdapterType.BOTTLENECK: (1e-3, 3e-4),
    AdapterType.LORA: (5e-4, 2e-4),
    AdapterType.RSLORA: (2e-4, 1e-4),
    AdapterType.DORA: (5e-4, 2e-4),
    AdapterType.IA3: (5e-3, 5e-3),
}


def prepare_adapter(
    strategy: AdapterStrategy, run: Run, loaded: Loaded, model_directory: Path, note: Callable[[str], None]
) -> Tuning:
    """Put adapters into a model and train them with its head. Raises TrainerError."""
    if strategy.type == AdapterType.BOTTLENECK or strategy.stack_on:
        from finetune_trainer.strategies.stacking import prepare_stack

        return prepare_stack(strategy, run, loaded, model_directory, note)
    from finetune_trainer.strategies.lora import prepare_lora  # peft takes seconds to import

    return prepare_lora(strategy, run, loaded, model_directory, note)


def default_learning_rate(strategy: AdapterStrategy, task: TaskName) -> float:
    """The peak learning rate where none is given."""
    return LEARNING_RATES[strategy.type][task == TaskName.TEXT_GENERATION]
