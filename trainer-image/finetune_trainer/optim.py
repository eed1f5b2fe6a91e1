"""AdamW with a rate for each parameter: body or head, layer, decayed or not; and the schedule of the rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune_api.v1alpha1.training import Schedule, TrainingSpec

_HEAD_RATE_LIMIT = 1e-3


@dataclass(frozen=True, slots=True)
class Trained:
    """How one parameter is trained."""

    parameter: nn.Parameter
    is_head: bool = False
    rate_scale: float = 1.0
    """Its share of the learning rate (layer-wise decay)."""
    is_decayed: bool = True
    """Whether weight decay may shrink it; biases and norms never are."""


def make_optimizer(trained: Mapping[str, Trained], training: TrainingSpec, learning_rate: float) -> torch.optim.AdamW:
    """AdamW over the trained parameters; each group keeps its peak rate as `peak_lr`."""
    head_rate = training.head_learning_rate or max(learning_rate, min(10 * learning_rate, _HEAD_RATE_LIMIT))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for entry in trained.values():
        rate = (head_rate if entry.is_head else learning_rate) * entry.rate_scale
        # Biases and norms are vectors; shrinking them towards zero is no regularisation.
        decay = training.weight_decay if entry.is_decayed and entry.parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(entry.parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "peak_lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def learning_rate_factor(step: int, total_steps: int, training: TrainingSpec) -> float:
    """The share of the peak learning rate at a step (0 is the first): linear warm-up, then the schedule.

    As in transformers, but the warm-up starts one step further, because an update at a rate of zero teaches nothing.
    """
    warmup_steps = math.ceil(training.warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if training.schedule == Schedule.CONSTANT:
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1.0 - done if training.schedule == Schedule.LINEAR else 0.5 * (1.0 + math.cos(math.pi * done))


def optimizer_tensors(optimizer: torch.optim.Optimizer, trained: Mapping[str, Trained]) -> dict[str, torch.Tensor]:
    """The optimizer's state as tensors named `<state>/<parameter>`."""
    return {
        f"{key}/{name}": tensor.contiguous()
        for name, entry in trained.items()
        for key, tensor in optimizer.state[entry.parameter].items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, Trained], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put saved state back. The optimizer's own load_state_dict is not used: it wants numbered parameters."""
    states: dict[str, dict[str, Any]] = {}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition("/")
        states.setdefault(name, {})[key] = tensor
    for name, state in states.items():
        parameter = trained[name].parameter
        optimizer.state[parameter] = {key: _own(tensor, parameter) for key, tensor in state.items()}


def _own(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A copy beside the parameter, laid out like it.

    A tensor read by safetensors is its file mapped into memory: training on it would need the file for ever.
    """
    if tensor.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
    return tensor.to(parameter.device, copy=True)
