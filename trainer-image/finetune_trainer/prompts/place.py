"""Where a soft prompt goes in a model, and what room it takes there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.strategy import PromptTuningStrategy, PromptType
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import pools_last_column, token_table


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether each token of a model sees only those before it."""
    kind = config.model_type
    return getattr(config, "is_decoder", False) or (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def tokens_before(config: PretrainedConfig) -> int:
    """Tokens of the input before the prompt: an encoder's first, which is often the one that is pooled."""
    return 0 if is_decoder(config) else 1


def positions_taken(strategy: PromptTuningStrategy, config: PretrainedConfig) -> int:
    """How many of a model's positions a prompt takes. Keys and values take none among an encoder's."""
    is_beside_positions = strategy.type == PromptType.PREFIX and not is_decoder(config)
    return 0 if is_beside_positions else strategy.num_virtual_tokens


@torch.no_grad()
def body_of(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[str, PreTrainedModel]:
    """The part that a model hands its inputs to, by its path and itself: tried, because it is not always `base_model`.

    OPT's and BART's language models pass their `base_model` by, and call the decoder in it.
    """
    called: list[str] = []
    parts = {path: part for path, part in model.named_modules() if path and isinstance(part, PreTrainedModel)}

    def note(path: str) -> Callable[[nn.Module, object], None]:
        return lambda module, inputs: called.append(path)

    hooks = [part.register_forward_pre_hook(note(path)) for path, part in parts.items()]
    was_training = model.training
    model.eval()
    try:
        model(**inputs)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return (called[0], parts[called[0]]) if called else ("", model.base_model)


def check_architecture(strategy: PromptTuningStrategy, model: PreTrainedModel, body: PreTrainedModel) -> None:
    """Raise TrainerError when a model cannot take a prompt of embeddings, or a decoder no prefix."""
    parameters = inspect.signature(type(body).forward).parameters
    if "inputs_embeds" not in parameters or token_table(body) is None:
        raise refused(strategy, model, "it takes token numbers only, no embeddings")
    if hasattr(model, "sequence_summary") and pools_last_column(model.config):
        raise refused(strategy, model, "it judges by the last column, so padding would come between prompt and text")
    if strategy.type == PromptType.PREFIX and is_decoder(model.config) and "past_key_values" not in parameters:
        raise refused(strategy, model, "it takes no keys and values of earlier tokens")


def refused(strategy: PromptTuningStrategy, model: PreTrainedModel, reason: str) -> TrainerError:
    """The error for a model that cannot be tuned by a kind of prompt."""
    hint = "use type Prompt or PTuning, or another strategy" if strategy.type == PromptType.PREFIX else "use an adapter"
    return TrainerError(
        ExitCode.MODEL_INVALID,
        f"spec.strategy.promptTuning: type {strategy.type} is not possible in {type(model).__name__}: {reason}",
        hint,
    )


def no_room(strategy: PromptTuningStrategy, limit: int) -> TrainerError:
    """The error for a prompt that alone is longer than what a model takes."""
    return TrainerError(
        ExitCode.SPEC_INVALID,
        f"spec.strategy.promptTuning.numVirtualTokens is {strategy.num_virtual_tokens}, but the model takes at most "
        f"{limit} tokens",
        f"use fewer than {limit}, so that there is room for the text",
    )
