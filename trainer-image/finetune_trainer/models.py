"""Loads pretrained models and tokenizers from a directory: safetensors only, no remote code, and says what is new."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_trainer import weights
from finetune_trainer.errors import TrainerError

_COPY_AGAIN = "copy the model again; downloads may be incomplete"
_ADAPTER_CONFIG = "adapter_config.json"
_LFS_POINTER = b"version https://git-lfs"
_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")
_NAMES_OF_CODE = ("auto_map", "custom_pipelines")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: frozenset[str]
    """Names of the parameters outside the pretrained body, and of those that the checkpoint did not have.

    A pretrained output layer over the vocabulary is no head: it knows the language as the body does.
    """


def check_directory(directory: Path) -> None:
    """Raise TrainerError unless this is a model directory with safetensors weights and no need for remote code."""
    try:
        files = {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        raise _invalid(
            f"{directory}: no such model directory", "check model.uri, and that the volume holds it"
        ) from None
    except OSError as error:
        raise _invalid(f"{directory}: not a readable directory: {error.strerror}", "check model.uri") from None
    if _ADAPTER_CONFIG in files:
        raise _invalid(
            f"{directory}: a peft adapter, not a whole model", "name its base model, or merge the adapter into that"
        )
    if "config.json" not in files:
        raise _invalid(f"{directory}: no config.json", "a model directory is what save_pretrained writes")
    _check_config(directory)
    _check_weights(directory, files)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, with a padding token. Raises TrainerError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise _invalid(
            f"{directory}: the tokenizer cannot be loaded: {_one_line(error)}",
            "the directory needs tokenizer.json or the tokenizer's own files",
        ) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where it finds no files
        raise _invalid(
            f"{directory}: the tokenizer has no vocabulary",
            "the directory needs tokenizer.json or the tokenizer's own files",
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise _invalid(f"{directory}: the tokenizer has neither a padding nor an end token", "set pad_token in it")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.init_kwargs.pop("auto_map", None)  # or what is exported would name that code again
    return tokenizer


def longest_input(directory: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a model can take; a huge number if it has no limit. Raises TrainerError."""
    config = AutoConfig.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False, pad_token_id=tokenizer.pad_token_id
    )
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize]
    try:
        with torch.device("meta"):  # its shape only, which takes milliseconds
            body = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _invalid(f"{directory}: no model can be made from config.json: {_one_line(error)}", _COPY_AGAIN) from None
    for name, module in body.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from the padding's number on.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min(limit for limit in limits if limit > 0)


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
    except Exception as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            raise
        raise _invalid(
            f"{directory}: cannot be loaded: {_one_line(error)}", "check that the model fits the task"
        ) from None
    for name in _NAMES_OF_CODE:  # or what is exported would name that code again
        vars(model.config).pop(name, None)
    replaced = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    new = set(info["missing_keys"]) | replaced
    names = [name for name, _ in model.named_parameters()]
    body = f"{model.base_model_prefix}."
    inside = {name for name in names if name.startswith(body)} or set(names)
    _check_fit(directory, inside, new, replaced)
    output = model.get_output_embeddings()
    over_vocabulary = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    inside |= {name for name, parameter in model.named_parameters() if id(parameter) in over_vocabulary}
    return Loaded(model, tokenizer, frozenset(name for name in names if name in new or name not in inside))


def model_files(directory: Path) -> list[Path]:
    """The files that decide what a model computes: its configuration and its weights, in a fixed order."""
    return sorted((directory / "config.json", *directory.glob(f"*{weights.SUFFIX}")))


def num_parameters(parameters: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(parameter.numel() for parameter in parameters)


def freeze(module: nn.Module) -> None:
    """Exclude a module's parameters from training."""
    module.requires_grad_(False)


def _check_fit(directory: Path, body: set[str], new: set[str], replaced: set[str]) -> None:
    """Raise TrainerError unless the checkpoint has the body that config.json describes."""
    if misfits := sorted(body & replaced):
        raise _invalid(
            f"{directory}: weights of another size than config.json says: {', '.join(misfits[:3])}", _COPY_AGAIN
        )
    if body <= new:
        raise _invalid(f"{directory}: none of the weights fit the architecture in config.json", _COPY_AGAIN)
    # Poolers are often left out of checkpoints and learnt anew; a layer without its weights is a torn model.
    if missing := sorted(name for name in body & new if "pooler" not in name):
        raise _invalid(
            f"{directory}: {len(missing)} weights that config.json speaks of are missing: {', '.join(missing[:3])}",
            _COPY_AGAIN,
        )


def _check_config(directory: Path) -> None:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise _invalid(f"{file}: not valid JSON", _COPY_AGAIN) from None
    except OSError as error:
        raise _invalid(f"{file}: cannot be read: {error.strerror}", "let the trainer's user read it") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise _invalid(f"{file}: has no model_type", "a model directory is what save_pretrained writes")
    if config.get("transformers_weights") is not None:  # transformers would load that file, and ours would be unread
        raise _invalid(
            f"{file}: names its weights itself (transformers_weights: {config['transformers_weights']!r:.100})",
            f"name them {weights.SINGLE}, and remove that line",
        )
    kind = config["model_type"]
    if kind == "finetune-adapters":
        raise _invalid(
            f"{directory}: the output of an adapter job, not a whole model",
            "name its base model here, and the output in strategy.adapter.stackOn",
        )
    if kind not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise _invalid(
                f"{directory}: the model needs code of its own, which is never run",
                "use a model whose architecture transformers has",
            )
        raise _invalid(
            f"{file}: the model_type {kind!r} is not known to transformers",
            nearest(kind, list(CONFIG_MAPPING)) or "use a model whose architecture transformers has",
        )
    try:
        AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise _invalid(f"{file}: not a valid configuration: {_one_line(error)}", _COPY_AGAIN) from None


def _check_weights(directory: Path, files: set[str]) -> None:
    if weights.SINGLE in files:
        shards = [weights.SINGLE]
    elif weights.INDEX in files:
        shards = _shards(directory / weights.INDEX)
    elif pickles := sorted(path.name for pattern in weights.PICKLES for path in directory.glob(pattern)):
        raise _invalid(
            f"{directory}: the weights are pickles only ({', '.join(pickles[:3])}), which run code when read",
            "convert them to safetensors: load and save_pretrained(...) on a machine where you trust them",
        )
    else:
        raise _invalid(f"{directory}: no weights ({weights.SINGLE})", _COPY_AGAIN)
    if missing := [name for name in shards if name not in files]:
        raise _invalid(
            f"{directory}: {len(missing)} of {len(shards)} files of weights are missing: {', '.join(missing[:3])}",
            _COPY_AGAIN,
        )
    for name in shards:
        _check_shard(directory / name)


def _shards(index: Path) -> list[str]:
    """The files in an index. It could name pickles, or files elsewhere, and transformers would read them."""
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _invalid(f"{index}: not a valid index of weights", _COPY_AGAIN) from None
    foreign = [name for name in shards if "/" in str(name) or not str(name).endswith(weights.SUFFIX)]
    if foreign or not shards:
        raise _invalid(
            f"{index}: names {', '.join(map(repr, foreign[:3])) or 'no files'}, not safetensors beside it",
            "convert the model with save_pretrained(...)",
        )
    return shards


def _check_shard(file: Path) -> None:
    """Raise TrainerError unless the header is whole and the file as long as it says. Reads no weights."""
    try:
        with file.open("rb") as start:
            if start.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise _invalid(f"{file}: a Git LFS pointer, not the weights", "fetch them with `git lfs pull`")
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise _invalid(
            f"{file}: not a whole safetensors file: {_one_line(error)}",
            _COPY_AGAIN,
        ) from None


def _one_line(error: Exception) -> str:
    """The first sentence of a library's error; the others list all that there is."""
    return " ".join(str(error).split()).partition(". ")[0][:300] or type(error).__name__


def _invalid(message: str, hint: str) -> TrainerError:
    return TrainerError(ExitCode.MODEL_INVALID, message, hint)
