"""Checks a model directory before anything of it is loaded: safetensors only, whole files, no remote code."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, PretrainedConfig

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_trainer import weights
from finetune_trainer.errors import TrainerError
from finetune_trainer.model_config import read_config

COPY_AGAIN = "copy the model again; downloads may be incomplete"
_ADAPTER_CONFIG = "adapter_config.json"
# Kinds whose own code cannot be tuned on rows of many lengths, on any machine.
_UNFIT = {
    "mra": "its attention is nothing without a kernel that it downloads",
    "reformer": "in training it reads texts of whole chunks only",
}
# What our own code writes around a model: the job that did, and what to do.
_OUTPUTS = {
    "finetune-adapters": ("an adapter", "name its base model here, and the output in strategy.adapter.stackOn"),
    "finetune-prompt": ("a prompt tuning", "name its base model"),
}
_LFS_POINTER = b"version https://git-lfs"


def check_directory(directory: Path) -> None:
    """Raise TrainerError unless this is a model directory with safetensors weights and no need for remote code."""
    try:
        files = {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        raise invalid(
            f"{directory}: no such model directory", "check model.uri, and that the volume holds it"
        ) from None
    except OSError as error:
        raise invalid(f"{directory}: not a readable directory: {error.strerror}", "check model.uri") from None
    if _ADAPTER_CONFIG in files:
        raise invalid(
            f"{directory}: a peft adapter, not a whole model", "name its base model, or merge the adapter into that"
        )
    if "config.json" not in files:
        raise invalid(f"{directory}: no config.json", "a model directory is what save_pretrained writes")
    _check_config(directory)
    _check_weights(directory, files)


def model_files(directory: Path) -> list[Path]:
    """The files that decide what a model computes: its configuration and its weights, in a fixed order."""
    return sorted((directory / "config.json", *directory.glob(f"*{weights.SUFFIX}")))


def one_line(error: Exception) -> str:
    """The first sentence of a library's error; the others list all that there is."""
    return " ".join(str(error).split()).partition(". ")[0][:300] or type(error).__name__


def invalid(message: str, hint: str) -> TrainerError:
    """The error of a model that cannot be used."""
    return TrainerError(ExitCode.MODEL_INVALID, message, hint)


def _check_config(directory: Path) -> None:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise invalid(f"{file}: not valid JSON", COPY_AGAIN) from None
    except OSError as error:
        raise invalid(f"{file}: cannot be read: {error.strerror}", "let the trainer's user read it") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise invalid(f"{file}: has no model_type", "a model directory is what save_pretrained writes")
    if config.get("transformers_weights") is not None:  # transformers would load that file, and ours would be unread
        raise invalid(
            f"{file}: names its weights itself (transformers_weights: {config['transformers_weights']!r:.100})",
            f"name them {weights.SINGLE}, and remove that line",
        )
    kind = config["model_type"]
    if kind in _OUTPUTS:
        job, hint = _OUTPUTS[kind]
        raise invalid(f"{directory}: the output of {job} job, not a whole model", hint)
    if kind not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise invalid(
                f"{directory}: the model needs code of its own, which is never run",
                "use a model whose architecture transformers has",
            )
        raise invalid(
            f"{file}: the model_type {kind!r} is not known to transformers",
            nearest(kind, list(CONFIG_MAPPING)) or "use a model whose architecture transformers has",
        )
    if kind in _UNFIT:
        raise invalid(f"{file}: models of the kind {kind!r} cannot be tuned: {_UNFIT[kind]}", "use one of another kind")
    try:
        known = read_config(directory)
    except Exception as error:
        raise invalid(f"{file}: not a valid configuration: {one_line(error)}", COPY_AGAIN) from None
    _check_whole(file, known)


def _check_whole(file: Path, config: PretrainedConfig) -> None:
    """Raise TrainerError for weights in few bits, wherever transformers would find that they are."""
    places = (config, config.get_text_config(decoder=True))
    found = next((way for one in places if (way := getattr(one, "quantization_config", None)) is not None), None)
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else None
    raise invalid(
        f"{file}: the weights are quantized already (quantization_config{f': {method!s:.40}' if method else ''})",
        "give the whole weights; where they do not fit, strategy.adapter.quantization: NF4 keeps them in 4 bits",
    )


def _check_weights(directory: Path, files: set[str]) -> None:
    if weights.SINGLE in files:
        shards = [weights.SINGLE]
    elif weights.INDEX in files:
        shards = _shards(directory / weights.INDEX)
    elif pickles := sorted(path.name for pattern in weights.PICKLES for path in directory.glob(pattern)):
        raise invalid(
            f"{directory}: the weights are pickles only ({', '.join(pickles[:3])}), which run code when read",
            "convert them to safetensors: load and save_pretrained(...) on a machine where you trust them",
        )
    else:
        raise invalid(f"{directory}: no weights ({weights.SINGLE})", COPY_AGAIN)
    if missing := [name for name in shards if name not in files]:
        raise invalid(
            f"{directory}: {len(missing)} of {len(shards)} files of weights are missing: {', '.join(missing[:3])}",
            COPY_AGAIN,
        )
    for name in shards:
        _check_shard(directory / name)


def _shards(index: Path) -> list[str]:
    """The files in an index. It could name pickles, or files elsewhere, and transformers would read them."""
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise invalid(f"{index}: not a valid index of weights", COPY_AGAIN) from None
    foreign = [name for name in shards if "/" in str(name) or not str(name).endswith(weights.SUFFIX)]
    if foreign or not shards:
        raise invalid(
            f"{index}: names {', '.join(map(repr, foreign[:3])) or 'no files'}, not safetensors beside it",
            "convert the model with save_pretrained(...)",
        )
    return shards


def _check_shard(file: Path) -> None:
    """Raise TrainerError unless the header is whole and the file as long as it says. Reads no weights."""
    try:
        with file.open("rb") as start:
            if start.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise invalid(f"{file}: a Git LFS pointer, not the weights", "fetch them with `git lfs pull`")
        with safe_open(file, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise invalid(
            f"{file}: not a whole safetensors file: {one_line(error)}",
            COPY_AGAIN,
        ) from None
