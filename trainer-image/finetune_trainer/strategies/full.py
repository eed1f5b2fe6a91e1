"""Full-model tuning: every parameter is trained, except frozen layers; lower layers may learn more slowly."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.strategy import FullStrategy
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded
from finetune_trainer.optim import Trained
from finetune_trainer.strategies import Tuning

DEFAULT_LEARNING_RATE = 3e-5
_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def prepare_full(strategy: FullStrategy, loaded: Loaded) -> Tuning:
    """Freeze the lowest layers and give each layer above its share of the learning rate."""
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

    return Tuning(model, trained, DEFAULT_LEARNING_RATE, save, "transformers")


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
            depth[name] = num_layers + 1 if seen_layers and name not in embeddings else 0
    return depth
