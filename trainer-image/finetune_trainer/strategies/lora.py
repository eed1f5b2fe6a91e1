"""LoRA (Hu et al. 2021) through peft: low-rank updates of linear layers, saved in peft's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import peft
from torch import nn
from transformers.pytorch_utils import Conv1D

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.strategy import AdapterStrategy
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded
from finetune_trainer.optim import Trained
from finetune_trainer.strategies import Tuning

DEFAULT_LEARNING_RATE = 5e-4
DEFAULT_RANK = 8


def head_modules(model: nn.Module, head: frozenset[str], prefix: str = "") -> list[str]:
    """The largest modules that hold nothing but the head.

    Their parts are not named: peft itself adds "classifier" and "score", and a part in one of those is then trained
    under a name that it cannot be loaded by.
    """
    found = []
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        parameters = [f"{path}.{inner}" for inner, _ in child.named_parameters()]
        if parameters and head.issuperset(parameters):
            found.append(path)
        elif not head.isdisjoint(parameters):
            found += head_modules(child, head, f"{path}.")
    return found


def _check_targets(targets: Sequence[str], model: nn.Module) -> None:
    """Raise TrainerError unless each name is a module's; peft passes over those that are not, if one is."""
    paths = [path for path, _ in model.named_modules()]
    unknown = [name for name in targets if not any(f".{path}".endswith(f".{name}") for path in paths)]
    if unknown:
        linear = (nn.Linear, Conv1D)
        known = dict.fromkeys(path.rpartition(".")[2] for path, one in model.named_modules() if isinstance(one, linear))
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.adapter.targetModules: the model has no module {', '.join(unknown)}",
            f"its linear layers are {', '.join(list(known)[:20])}",
        )


def prepare_lora(strategy: AdapterStrategy, run: Run, loaded: Loaded, model_directory: Path) -> Tuning:
    """Put LoRA updates on a model's linear layers and train them with its head."""
    _check_targets(strategy.target_modules or (), loaded.model)
    rank = strategy.rank or DEFAULT_RANK
    config = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=rank,
        lora_alpha=strategy.alpha or 2 * rank,
        lora_dropout=strategy.dropout,
        target_modules=list(strategy.target_modules) if strategy.target_modules else "all-linear",
        # peft knows heads by three names; what the checkpoint did not have must be trained whatever its name.
        modules_to_save=head_modules(loaded.model, loaded.head),
    )
    source = run.spec.model
    on_hub = source.uri.startswith("hf://")
    config.base_model_name_or_path = source.uri.removeprefix("hf://") if on_hub else str(model_directory.resolve())
    config.revision = source.revision if on_hub else None
    base_config = loaded.model.config
    try:
        model = peft.get_peft_model(loaded.model, config)
    except ValueError as error:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.adapter.targetModules: {str(error).splitlines()[0][:300]}",
            "name modules of the model, or leave it out for all linear layers",
        ) from None
    trained = {
        name: Trained(parameter, is_head="modules_to_save" in name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }

    def save(directory: Path) -> None:
        model.save_pretrained(directory)
        base_config.save_pretrained(directory)  # labels and their names, which peft's own files lack
        loaded.tokenizer.save_pretrained(directory)

    return Tuning(model, trained, DEFAULT_LEARNING_RATE, save, "peft")
