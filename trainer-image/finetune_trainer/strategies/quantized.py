"""A frozen base model in 4 bits, NormalFloat with double quantization (QLoRA; Dettmers et al. 2023, section 3)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded

_WAY: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}


def quantize(loaded: Loaded) -> list[str]:
    """Keep the linear layers of a model's body in 4 bits; returns the paths of those that stay as they are.

    What is computed is what transformers' BitsAndBytesConfig computes with these paths as `llm_int8_skip_modules`.
    Raises TrainerError when no layer can be kept so.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit  # it looks for GPUs when it is imported

    model: Any = loaded.model
    paths = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    kept = [path for path in paths if f"{path}.weight" in loaded.head or _is_output(model, path)]
    if len(kept) == len(paths):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"spec.strategy.adapter.quantization: {type(model).__name__} has no linear layer that bitsandbytes knows",
            "leave it out for this model",
        )
    for path in paths:
        if path in kept:
            continue
        linear = model.get_submodule(path)
        with torch.device("meta"):
            small = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=linear.weight.dtype,
                **_WAY,
            )
        small.weight = Params4bit(linear.weight.data, requires_grad=False, module=small, **_WAY)
        small.bias = linear.bias
        small.forward = functools.partial(_forward, small)
        # On the CPU, whatever trains: two devices may round a weight to different sides.
        model.set_submodule(path, small.to("cpu"))
    model.is_loaded_in_4bit = True  # by which peft knows
    return kept


def settings(kept: list[str]) -> dict[str, Any]:
    """The arguments of transformers' BitsAndBytesConfig that load a base model as it was trained on."""
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": _WAY["quant_type"],
        "bnb_4bit_use_double_quant": _WAY["compress_statistics"],
        "llm_int8_skip_modules": kept,
    }


def _forward(layer: Any, inputs: Tensor) -> Tensor:
    """A layer as autocast would have it, or in 32 bits: its operators are unknown to autocast.

    bitsandbytes' own way to say so rounds the biases for good; and on a CPU with AVX512-BF16 an evaluation would round
    the scales, so that what follows would train another model.
    """
    from bitsandbytes import matmul_4bit

    kind = inputs.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else layer.compute_dtype
    bias = None if layer.bias is None else layer.bias.to(dtype)
    output: Tensor = matmul_4bit(inputs.to(dtype), layer.weight, bias=bias, quant_state=layer.weight.quant_state)
    return output


def _is_output(model: Any, path: str) -> bool:
    return model.get_submodule(path) is model.get_output_embeddings()
