"""Makes a student of chosen layers of a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

_FIELD = "spec.strategy.distillation.studentLayers"


def keep_layers(model: PreTrainedModel, chosen: Sequence[int]) -> None:
    """Keep these layers of a model (0 is the first), in this order, with embeddings and head. Raises TrainerError.

    Sanh et al. 2019 (1910.01108), section 3: a student that starts from its teacher's layers learns far better than
    one that starts from random weights.
    """
    config, num_layers = model.config, num_hidden_layers(model)
    if beyond := [number for number in chosen if number >= num_layers]:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"{_FIELD} has {', '.join(map(str, beyond))}, but the model has {num_layers} layers",
            f"use numbers from 0 to {num_layers - 1}",
        )
    stack = _stack(model, num_layers)
    parent = model.get_submodule(stack.rpartition(".")[0])
    layers = model.get_submodule(stack)
    kept = nn.ModuleList(layers[number] for number in chosen)
    setattr(parent, stack.rpartition(".")[2], kept)
    for number, layer in enumerate(kept):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = number
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):  # which layers attend to all tokens, and which to their neighbours
        config.layer_types = [config.layer_types[number] for number in chosen]
    _check_config(model)


def num_hidden_layers(model: PreTrainedModel) -> int:
    """How many layers a model has."""
    return int(model.config.get_text_config().num_hidden_layers)


def _stack(model: PreTrainedModel, num_layers: int) -> str:
    """The path of the one list that holds the layers."""
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and _are_layers(module)
    ]
    if len(found) != 1:
        raise _refused(model, "its layers are not one list")
    return found[0]


def _are_layers(modules: nn.ModuleList) -> bool:
    """Whether the modules are alike and attend: lists of norms or of experts do not."""
    classes = {type(module) for module in modules}
    attend = ["attn" in path or "attention" in path for path, _ in modules[0].named_children()]
    return len(classes) == 1 and any(attend)


def _check_config(model: PreTrainedModel) -> None:
    """Raise TrainerError unless the configuration describes the model that is left; else it could not be loaded."""
    with torch.device("meta"):
        described = type(model)(model.config).state_dict()
    if {name: tensor.shape for name, tensor in described.items()} != {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }:
        raise _refused(model, "its configuration cannot describe them")


def _refused(model: PreTrainedModel, reason: str) -> TrainerError:
    return TrainerError(
        ExitCode.MODEL_INVALID,
        f"{_FIELD}: layers cannot be chosen of {model.config.model_type}: {reason}",
        "leave studentLayers out, and name a smaller model as spec.model",
    )
