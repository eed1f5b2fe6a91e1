"""Saves a decoder's soft prompt in peft's format, which peft and what builds on it generate text with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from finetune_trainer import weights

_TENSOR = "prompt_embeddings"


def save_prompt(directory: Path, prompt: Tensor, model: PreTrainedModel, base_name: str, revision: str | None) -> None:
    """Write a prompt [P, E], or a prefix [N, 2, H, P, K], of a model with the name that the model has."""
    config = _config(prompt, model)
    config.base_model_name_or_path, config.revision = base_name, revision
    config.save_pretrained(str(directory))
    save_file({_TENSOR: _flat(prompt)}, directory / f"adapter_model{weights.SUFFIX}")


@torch.no_grad()
def pefts_logits(prompt: Tensor, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits at the tokens of a text that peft gives for a model with a prompt. Raises whatever peft does."""
    with torch.random.fork_rng(devices=[]):  # peft draws a prompt first, which must not change what is drawn later
        theirs = peft.PeftModelForCausalLM(model, _config(prompt, model))
    peft.set_peft_model_state_dict(theirs, {_TENSOR: _flat(prompt)})
    logits: Tensor = theirs(**inputs).logits
    return logits[:, -inputs["input_ids"].shape[1] :]  # those of the prompt itself come first


def _config(prompt: Tensor, model: PreTrainedModel) -> peft.PromptLearningConfig:
    shape: dict[str, Any] = {"task_type": peft.TaskType.CAUSAL_LM, "inference_mode": True}
    if prompt.ndim == 2:
        num_tokens, width = prompt.shape
        return peft.PromptTuningConfig(
            num_virtual_tokens=num_tokens,
            token_dim=width,
            # peft uses neither for a prompt of embeddings, but refuses a model of which it cannot tell them.
            num_attention_heads=getattr(model.config, "num_attention_heads", None) or 1,
            num_layers=getattr(model.config, "num_hidden_layers", None) or 1,
            num_transformer_submodules=1,
            **shape,
        )
    num_layers, _, num_heads, num_tokens, head_width = prompt.shape
    return peft.PrefixTuningConfig(
        num_virtual_tokens=num_tokens,
        token_dim=num_heads * head_width,
        num_attention_heads=num_heads,
        num_layers=num_layers,
        num_transformer_submodules=1,
        **shape,
    )


def _flat(prompt: Tensor) -> Tensor:
    """A row a token; of a prefix the keys and values of every layer."""
    flat = prompt if prompt.ndim == 2 else prompt.permute(3, 0, 1, 2, 4).reshape(prompt.shape[3], -1)
    return flat.contiguous()
