"""How a model is tuned. A strategy answers three questions: which parameters, which forward, what to save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from finetune_api.run import Run
from finetune_trainer.models import Loaded
from finetune_trainer.optim import Trained


@dataclass(frozen=True, slots=True)
class Tuning:
    """A model made ready to be tuned."""

    model: nn.Module
    """Its forward takes a batch's inputs and returns an output with `logits`."""
    trained: Mapping[str, Trained]
    """The trained parameters by name. They are what a checkpoint holds; everything else comes from the base model."""
    default_learning_rate: float
    save: Callable[[Path], None]
    """Write what `from_pretrained` (or peft) loads into a directory."""
    loader: str
    """How the saved directory is loaded: `transformers`, `transformers-remote-code` or `peft`."""


def prepare(run: Run, loaded: Loaded, model_directory: Path) -> Tuning:
    """Make a model ready for the run's strategy. Raises TrainerError."""
    strategy = run.spec.strategy
    if strategy.full is not None:
        from finetune_trainer.strategies.full import prepare_full

        return prepare_full(strategy.full, loaded)
    if strategy.adapter is not None and strategy.adapter.type == "Bottleneck":
        from finetune_trainer.strategies.bottleneck import prepare_bottleneck

        return prepare_bottleneck(strategy.adapter, loaded)
    if strategy.adapter is not None and strategy.adapter.type == "LoRA":
        from finetune_trainer.strategies.lora import prepare_lora  # peft takes seconds to import

        return prepare_lora(strategy.adapter, run, loaded, model_directory)
    raise NotImplementedError(strategy.name)  # refused when the manifest is validated
