"""How a model is tuned. A strategy answers three questions: which parameters, which forward, what to save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune_api.run import Run
from finetune_trainer.models import Loaded
from finetune_trainer.objective import Objective
from finetune_trainer.optim import Trained
from finetune_trainer.tasks import Task
from finetune_trainer.watchdog import doing


@dataclass(frozen=True, slots=True)
class Tuning:
    """A model made ready to be tuned."""

    model: nn.Module
    """Its forward takes a batch's inputs and returns the output that the task's unit_logits reads."""
    trained: Mapping[str, Trained]
    """The trained parameters by name. They are what a checkpoint holds; everything else comes from the base model."""
    default_learning_rate: float
    save: Callable[[Path], None]
    """Write what `from_pretrained` (or peft) loads into a directory."""
    loader: str
    """How the saved directory is loaded: `transformers`, `transformers-remote-code` or `peft`."""
    objective: Objective | None = None
    """What is minimised in place of the task's loss."""
    penalty: Callable[[], Tensor] | None = None
    """What is added to the loss once a step; it has no gradient while nothing that it is on is trained."""
    before_step: Callable[[int], None] | None = None
    """Called before each step with the number of steps done; must depend on that alone, or a resumed run differs."""
    choose_rows: Callable[[int, list[int]], list[int]] | None = None
    """Takes the number of steps done and the next batch's rows, and by those alone gives the rows to train on."""
    result_after: int = 0
    """No weights of this step or an earlier one may be the result: they are those of a stage that leads up to it."""
    patience_after: int = 0
    """Early stopping counts no evaluation up to this step: not all is trained by then that is to be."""
    inputs: str = ""
    """A digest of what was read besides the model and the data; checkpoints of other inputs are not used."""


def prepare(
    run: Run, task: Task, loaded: Loaded, model_directory: Path, device: torch.device, note: Callable[[str], None]
) -> Tuning:
    """Make a model ready for the run's strategy. `note` takes a sentence for people. Raises TrainerError."""
    strategy = run.spec.strategy
    if strategy.full is not None:
        from finetune_trainer.strategies.full import prepare_full

        return prepare_full(strategy.full, task, loaded)
    if strategy.distillation is not None:
        from finetune_trainer.strategies.distillation import prepare_distillation

        with doing(on=device):  # the teacher answers there; the others prepare a model on the CPU
            return prepare_distillation(strategy.distillation, run, task, loaded, device, note)
    if strategy.prompt_tuning is not None:
        from finetune_trainer.strategies.prompt_tuning import prepare_prompt_tuning

        return prepare_prompt_tuning(strategy.prompt_tuning, run, task, loaded, model_directory, note)
    if strategy.adapter is not None:
        from finetune_trainer.strategies.adapter import prepare_adapter

        return prepare_adapter(strategy.adapter, run, loaded, model_directory, note)
    raise NotImplementedError(strategy.name)  # auto has become one of these by now
