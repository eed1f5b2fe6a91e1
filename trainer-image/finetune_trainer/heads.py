"""The output layer that a checkpoint brings for a classifier: which weights, of which classes; and drawn anew."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel

from finetune_trainer import weights
from finetune_trainer.model_config import read_config


@dataclass(frozen=True, slots=True)
class PretrainedOutput:
    """An output layer in a checkpoint."""

    parameters: frozenset[str]
    """Their names in the model."""
    labels: tuple[str, ...]
    """The name of each class; LABEL_0, LABEL_1, ... where config.json does not name them."""


def pretrained_output(auto_class: Any, directory: Path) -> PretrainedOutput | None:
    """The output layer that a classifier finds in a checked model directory; None where it has to be a new one."""
    # The padding is of no matter here, but one that the model does not have would be.
    config = read_config(directory, pad_token_id=0)
    try:
        own, wider = (_shapes(auto_class, config, config.num_labels + more) for more in (0, 1))
    except Exception:  # no model of this kind has such a head; loading it says so
        return None
    parameters = {name for name, shape in own.items() if shape != wider[name]}
    found = shapes_of(directory)
    sizes = {found[name][0] if name in found and len(found[name]) else 0 for name in parameters}
    if len(sizes) != 1 or 0 in sizes:
        return None
    return PretrainedOutput(frozenset(parameters), _labels(config, sizes.pop()))


def shapes_of(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a model directory, by its name. Reads headers only."""
    found: dict[str, tuple[int, ...]] = {}
    for path in directory.glob(f"*{weights.SUFFIX}"):
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def draw_anew(model: PreTrainedModel, parameters: Collection[str]) -> None:
    """Draw some of a loaded model's weights as transformers draws those that a checkpoint lacks; no others change."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor._is_hf_initialized = name not in parameters
    for name in parameters:
        path = name.rpartition(".")[0]
        while True:  # which of the modules around it draws it depends on the kind of model
            model.get_submodule(path)._is_hf_initialized = False
            if not path:
                break
            path = path.rpartition(".")[0]
    model.initialize_weights()


def _shapes(auto_class: Any, config: PretrainedConfig, num_labels: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a model for so many labels."""
    resized = copy.deepcopy(config)
    resized.num_labels = num_labels
    with torch.device("meta"):
        model = auto_class.from_config(resized, trust_remote_code=False)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _labels(config: PretrainedConfig, size: int) -> tuple[str, ...]:
    """The names of an output layer's classes, if the configuration has one for each."""
    names = tuple(str(config.id2label.get(number)) for number in range(size))
    is_named = config.id2label.keys() == set(range(size)) and len(set(names)) == size
    return names if is_named else tuple(f"LABEL_{number}" for number in range(size))
