"""Saves a decoder's soft prompt in peft's format, which peft and what builds on it generate text with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from safetensors.torch import save_file
from torch import Tensor

from finetune_trainer import weights


def save_prompt(directory: Path, prompt: Tensor, base_name: str, revision: str | None) -> None:
    """Write a prompt [P, E], or a prefix [N, 2, H, P, K], with the name of its base model."""
    shape: dict[str, Any] = {"task_type": peft.TaskType.CAUSAL_LM, "inference_mode": True}
    shape |= {"base_model_name_or_path": base_name, "revision": revision}
    config: peft.PromptLearningConfig
    if prompt.ndim == 2:
        num_tokens, width = prompt.shape
        flat = prompt
        config = peft.PromptTuningConfig(
            num_virtual_tokens=num_tokens, token_dim=width, num_transformer_submodules=1, **shape
        )
    else:
        num_layers, _, num_heads, num_tokens, head_width = prompt.shape
        flat = prompt.permute(3, 0, 1, 2, 4).reshape(num_tokens, -1)  # a row a token: keys and values of every layer
        config = peft.PrefixTuningConfig(
            num_virtual_tokens=num_tokens,
            token_dim=num_heads * head_width,
            num_attention_heads=num_heads,
            num_layers=num_layers,
            num_transformer_submodules=1,
            **shape,
        )
    config.save_pretrained(str(directory))
    save_file({"prompt_embeddings": flat.contiguous()}, directory / f"adapter_model{weights.SUFFIX}")
