"""Loads pretrained models and tokenizers from a directory: safetensors only, no remote code, and says what is new."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: frozenset[str]
    """Names of the parameters outside the pretrained body, and of those that the checkpoint did not have."""


def check_directory(directory: Path) -> None:
    """Raise TrainerError unless this is a model directory with safetensors weights and no need for remote code."""
    if not directory.is_dir():
        raise _invalid(f"{directory}: no such model directory", "check model.uri, and that the volume holds it")
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise _invalid(f"{directory}: no config.json", "a model directory is what save_pretrained writes")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError:
        raise _invalid(f"{config_file}: not valid JSON", "copy the model again") from None
    if "auto_map" in config and not _is_known(config):
        raise _invalid(
            f"{directory}: the model needs code of its own, which is never run",
            "use a model whose architecture transformers has",
        )
    if not any(directory.glob("*.safetensors")):
        pickles = [path.name for pattern in _PICKLES for path in directory.glob(pattern)]
        if pickles:
            raise _invalid(
                f"{directory}: the weights are pickles only ({', '.join(sorted(pickles))}), which run code when read",
                "convert them to safetensors: load and save_pretrained(...) on a machine where you trust them",
            )
        raise _invalid(f"{directory}: no weights (*.safetensors)", "copy the model again; downloads may be incomplete")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, with a padding token. Raises TrainerError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise _invalid(
            f"{directory}: the tokenizer cannot be loaded: {_first_line(error)}",
            "the directory needs tokenizer.json or the tokenizer's own files",
        ) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise _invalid(f"{directory}: the tokenizer has neither a padding nor an end token", "set pad_token in it")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(auto_class: Any, directory: Path, tokenizer: PreTrainedTokenizerBase, **config: Any) -> Loaded:
    """A model in float32 with a head for the task. Raises TrainerError when it does not load or does not fit."""
    check_directory(directory)
    try:
        model, info = auto_class.from_pretrained(
            directory,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # a head for other labels is replaced; the body is checked below
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise _invalid(
            f"{directory}: cannot be loaded: {_first_line(error)}", "check that the model fits the task"
        ) from None
    body = f"{model.base_model_prefix}."
    replaced = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    if misfits := sorted(name for name in replaced if name.startswith(body)):
        raise _invalid(
            f"{directory}: weights of another size than config.json says: {', '.join(misfits[:3])}",
            "copy the model again",
        )
    new = set(info["missing_keys"]) | replaced
    names = [name for name, _ in model.named_parameters()]
    if new.issuperset(names):
        raise _invalid(f"{directory}: none of the weights fit the architecture in config.json", "copy the model again")
    return Loaded(model, tokenizer, frozenset(name for name in names if name in new or not name.startswith(body)))


def num_parameters(parameters: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(parameter.numel() for parameter in parameters)


def freeze(module: nn.Module) -> None:
    """Exclude a module's parameters from training."""
    module.requires_grad_(False)


def _is_known(config: dict[str, Any]) -> bool:
    try:
        AutoConfig.for_model(config.get("model_type", ""))
    except ValueError:
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _invalid(message: str, hint: str) -> TrainerError:
    return TrainerError(ExitCode.MODEL_INVALID, message, hint)
