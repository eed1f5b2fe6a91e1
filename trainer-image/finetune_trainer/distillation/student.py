"""Makes a student of chosen layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

_FIELD = "spec.strategy.distillation.studentLayers"
# Where a layer keeps its own number (BigBird as the seed of what it looks at), and a model how many layers it has.
_LAYER_NUMBERS = ("layer_idx", "layer_id", "seed")
_LAYER_COUNTS = ("n_layer", "n_layers", "num_layers", "num_hidden_layers")
# What loading and training change.
_STATES = ("training", "_is_hf_initialized")
# Lists that may be as long as there are layers, and are of something else.
_NO_LISTS_OF_LAYERS = ("architectures", "eos_token_id", "pos_att_type")
_INDESCRIBABLE = "its configuration cannot describe them"


def keep_layers(model: PreTrainedModel, chosen: Sequence[int]) -> None:
    """Keep these layers of a model (0 is the first), in this order, with embeddings and head. Raises TrainerError.

    Sanh et al. 2019 (1910.01108), section 3: a student that starts from its teacher's layers learns far better than
    one that starts from random weights.
    """
    config, num_layers = model.config.get_text_config(), num_hidden_layers(model)
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
            vars(module).update({name: number for name in _LAYER_NUMBERS if vars(module).get(name) is not None})
    for module in model.modules():
        vars(module).update({name: len(chosen) for name in _LAYER_COUNTS if vars(module).get(name) == num_layers})
    try:
        _cut(config, num_layers, chosen)
    except (NotImplementedError, AttributeError):  # Funnel counts its layers by blocks
        raise _refused(model, _INDESCRIBABLE) from None
    _check_config(model, stack)


def _cut(config: PretrainedConfig, num_layers: int, chosen: Sequence[int]) -> None:
    """Let a configuration describe the chosen layers: what it lists for each layer, and how many there are."""
    lists = {
        name: [value[number] for number in chosen]
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == num_layers and name not in _NO_LISTS_OF_LAYERS
    }
    # GPT-Neo makes its list of this one when it is loaded.
    if hasattr(config, "attention_types") and "attention_layers" in lists:
        lists["attention_types"] = [[lists["attention_layers"], 1]]
    config.num_hidden_layers = len(chosen)
    for name, value in lists.items():
        setattr(config, name, value)


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


def _check_config(model: PreTrainedModel, stack: str) -> None:
    """Raise TrainerError unless the configuration describes the model that is left; else it could not be loaded."""
    try:
        config = type(model.config).from_dict(model.config.to_dict())
        with torch.device("meta"):
            described = type(model)(config)
    except Exception:
        raise _refused(model, _INDESCRIBABLE) from None
    if _outline(described, stack) != _outline(model, stack):
        raise _refused(model, _INDESCRIBABLE)


def _outline(model: PreTrainedModel, stack: str) -> dict[str, Any]:
    """What tells two models of a class apart: the shapes of their weights, and how their layers are set.

    By settings two layers may differ that have the same weights, such as the window that attention sees.
    """
    outline: dict[str, Any] = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for path, module in model.get_submodule(stack).named_modules():
        outline |= {
            f"{path}:{name}": value
            for name, value in vars(module).items()
            if name not in _STATES and isinstance(value, bool | int | float | str | None)
        }
    return outline


def _refused(model: PreTrainedModel, reason: str) -> TrainerError:
    return TrainerError(
        ExitCode.MODEL_INVALID,
        f"{_FIELD}: layers cannot be chosen of {model.config.model_type}: {reason}",
        "leave studentLayers out, and name a smaller model as spec.model",
    )
