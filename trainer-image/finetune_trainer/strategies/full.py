"""Full-model tuning: every parameter is trained, except frozen layers; lower layers may learn more slowly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.strategy import FullStrategy, GradualUnfreezing
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded
from finetune_trainer.optim import Trained
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task

DEFAULT_LEARNING_RATE = 3e-5
CAUSAL_LEARNING_RATE = 2e-5
# ALBERT's layers share their weights: what is one there is a group of them.
_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|albert_layer_groups)\.(\d+)\.")
# What stands among a model's modules elsewhere than where it works: OPT's last norm before the layers; after them
# BART's norm of the embeddings, and DeBERTa's of the relative positions with the convolution beside the first layer.
_ABOVE_LAYERS = re.compile(r"\.(?:final_layer_norm|project_out)\.")
_BELOW_LAYERS = re.compile(r"\.layernorm_embedding\.|^deberta\.encoder\.(?:LayerNorm|conv)\.")


def prepare_full(strategy: FullStrategy, task: Task, loaded: Loaded) -> Tuning:
    """Freeze the lowest layers, give each layer above its share of the learning rate, hold weights to their start."""
    model = loaded.model
    depth = depths(model, loaded.head)
    num_layers = max((d for d in depth.values()), default=0) - 1
    if strategy.frozen_layers > num_layers:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.full.frozenLayers is {strategy.frozen_layers}, but the model has {num_layers} layers",
            f"use at most {num_layers}",
        )
    first_trained = strategy.frozen_layers + 1 if strategy.frozen_layers else 0
    trained = {}
    for name, parameter in model.named_parameters():
        if depth[name] < first_trained:
            parameter.requires_grad_(False)
        else:
            scale = strategy.layer_decay ** (num_layers + 1 - depth[name])
            trained[name] = Trained(parameter, is_head=name in loaded.head, rate_scale=scale)

    def save(directory: Path) -> None:
        model.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)

    rate = CAUSAL_LEARNING_RATE if task.model_class == "AutoModelForCausalLM" else DEFAULT_LEARNING_RATE
    return Tuning(
        model,
        trained,
        rate,
        save,
        "transformers",
        penalty=_distance(strategy.l2_to_start, trained) if strategy.l2_to_start else None,
        before_step=_thawing(strategy.gradual_unfreezing, trained, depth) if strategy.gradual_unfreezing else None,
        patience_after=_last_thaw(strategy.gradual_unfreezing, trained, depth) if strategy.gradual_unfreezing else 0,
    )


def _distance(weight: float, trained: Mapping[str, Trained]) -> Callable[[], Tensor] | None:
    """Squared distance of the trained body to its pretrained weights (L2-SP: Li et al. 2018, arXiv 1802.01483, eq. 2).

    The paper's factor alpha / 2 is `weight`. New heads have no start worth keeping; None where nothing else is trained.
    """
    body = {name: entry.parameter for name, entry in trained.items() if not entry.is_head}
    start = {name: parameter.detach().clone() for name, parameter in body.items()}

    def part(name: str, parameter: nn.Parameter) -> Tensor:
        if not parameter.requires_grad:  # not thawed yet, so it is where it was
            return parameter.new_zeros(())
        start[name] = start[name].to(parameter.device)  # the model may have moved since; once, not at each step
        return (parameter - start[name]).square().sum()

    def distance() -> Tensor:
        return weight * torch.stack([part(name, parameter) for name, parameter in body.items()]).sum()

    return distance if body else None


def _thawing(
    spec: GradualUnfreezing, trained: Mapping[str, Trained], depth: Mapping[str, int]
) -> Callable[[int], None]:
    """Trains the top first and one more layer below it every so many steps (Howard and Ruder 2018, section 3.3).

    What is frozen gets no gradient and no decay; its optimizer state begins when it thaws.
    """
    top = max(depth.values())

    def thaw(step: int) -> None:
        lowest = top - step // spec.every_steps
        for name, entry in trained.items():
            entry.parameter.requires_grad_(depth[name] >= lowest)

    return thaw


def _last_thaw(spec: GradualUnfreezing, trained: Mapping[str, Trained], depth: Mapping[str, int]) -> int:
    """The step before which the lowest of the trained layers thaws."""
    return spec.every_steps * (max(depth.values()) - min(depth[name] for name in trained))


def depths(model: nn.Module, head: frozenset[str]) -> dict[str, int]:
    """Each parameter's depth: 0 for embeddings, 1 to N for layers, N + 1 for the head and what follows the layers."""
    embeddings = {
        f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)
    }  # DeBERTa has its relative positions after the layers
    numbers = {name: _LAYER_NUMBER.search(name) for name, _ in model.named_parameters()}
    num_layers = max((int(found[1]) + 1 for found in numbers.values() if found), default=0)
    depth, seen_layers = {}, False
    for name, found in numbers.items():
        seen_layers = seen_layers or found is not None
        if name in head:
            depth[name] = num_layers + 1
        elif found:
            depth[name] = int(found[1]) + 1
        else:
            is_above = (seen_layers or _ABOVE_LAYERS.search(name)) and not _BELOW_LAYERS.search(name)
            depth[name] = num_layers + 1 if is_above and name not in embeddings else 0
    return depth
