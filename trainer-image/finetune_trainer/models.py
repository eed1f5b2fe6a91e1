"""Loads pretrained models and tokenizers from a directory: safetensors only, no remote code, and says what is new."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finetune_trainer.heads import draw_anew
from finetune_trainer.model_checks import COPY_AGAIN, check_directory, invalid, one_line
from finetune_trainer.model_config import read_config

_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")
_LAYER = re.compile(r"(?<=\.)[0-9]+(?=\.)")
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


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, with a padding token. Raises TrainerError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise invalid(
            f"{directory}: the tokenizer cannot be loaded: {one_line(error)}",
            "the directory needs tokenizer.json or the tokenizer's own files",
        ) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where it finds no files
        raise invalid(
            f"{directory}: the tokenizer has no vocabulary",
            "the directory needs tokenizer.json or the tokenizer's own files",
        )
    _pad_within(directory, tokenizer)
    tokenizer.init_kwargs.pop("auto_map", None)  # or what is exported would name that code again
    return tokenizer


def _pad_within(directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a token pad that the model has a row for; paddings are masked, so any will do. Raises TrainerError.

    A tokenizer may have none, or one that was added to it without making the model's table larger.
    """
    config = read_config(directory).get_text_config()
    size = getattr(config, "vocab_size", None) or sys.maxsize
    added = tokenizer.pad_token_id
    if added is not None and added < size:
        return
    # The model's own first: some count positions by it.
    known = [config.pad_token_id] if added is not None else []
    for number in (*known, tokenizer.eos_token_id, *([tokenizer.unk_token_id] if added is not None else [])):
        if isinstance(number, int) and 0 <= number < min(size, len(tokenizer)):
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(number)
            return
    if added is None:
        raise invalid(f"{directory}: the tokenizer has neither a padding nor an end token", "set pad_token in it")
    raise invalid(
        f"{directory}: the tokenizer pads with token {added}, but the model knows {size} tokens only",
        "set pad_token in it to a token that the model knows",
    )


def longest_input(directory: Path, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a model can take; a huge number if it has no limit. Raises TrainerError."""
    config = read_config(directory, pad_token_id=tokenizer.pad_token_id)
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize]
    try:
        with torch.device("meta"):  # its shape only, which takes milliseconds
            body = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise invalid(f"{directory}: no model can be made from config.json: {one_line(error)}", COPY_AGAIN) from None
    for name, module in body.named_modules():
        if name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from the padding's number on.
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min((limit for limit in limits if limit > 0), default=sys.maxsize)  # XLNet says -1


def pools_last_column(config: PretrainedConfig) -> bool:
    """Whether a classifier judges a text by a batch's last column, whatever is there, as XLNet does.

    Its rows have to be padded on the left, or what it says of one depends on how long the others are.
    """
    return getattr(config, "summary_type", None) == "last"


def load_model(
    auto_class: Any,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    drawn_anew: frozenset[str] = frozenset(),
    **config: Any,
) -> Loaded:
    """A model in float32 with a head for the task. Raises TrainerError when it does not load or does not fit.

    The parameters named in `drawn_anew` are new, whatever the checkpoint has there.
    """
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
            **_settled(directory),
            **config,
        )
    except Exception as error:
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            raise
        raise invalid(
            f"{directory}: cannot be loaded: {one_line(error)}", "check that the model fits the task"
        ) from None
    for name in _NAMES_OF_CODE:  # or what is exported would name that code again
        vars(model.config).pop(name, None)
    replaced = {entry[0] if isinstance(entry, tuple) else entry for entry in info["mismatched_keys"]}
    if drawn_anew:
        draw_anew(model, drawn_anew)
    new = set(info["missing_keys"]) | replaced | drawn_anew
    names = [name for name, _ in model.named_parameters()]
    inside = body_parameters(model)
    _check_fit(directory, inside, new, replaced)
    _check_layers(directory, model, set(info["unexpected_keys"]))
    _train_every_token(model, tokenizer)
    _keep_no_cache(model)
    output = model.get_output_embeddings()
    over_vocabulary = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    inside |= {name for name, parameter in model.named_parameters() if id(parameter) in over_vocabulary}
    return Loaded(model, tokenizer, frozenset(name for name in names if name in new or name not in inside))


def _settled(directory: Path) -> dict[str, Any]:
    """What a model would decide by the inputs that it sees, decided before.

    BigBird gives up its sparse attention for good at the first short input: another one would be trained than is saved.
    """
    config = read_config(directory)
    is_sparse = getattr(config, "attention_type", None) == "block_sparse"
    return {"attention_type": "original_full"} if is_sparse else {}


def body_parameters(model: PreTrainedModel) -> set[str]:
    """Names of the parameters of a model's body; of all where it cannot be told apart."""
    names = {name for name, _ in model.named_parameters()}
    if inside := {name for name in names if name.startswith(f"{model.base_model_prefix}.")}:
        return inside
    # T5's finder of answers has the body's parts beside its head.
    try:
        with torch.device("meta"):
            body = AutoModel.from_config(model.config, trust_remote_code=False)
    except ValueError:
        return names
    return names & {name for name, _ in body.named_parameters()} or names


def body_prefix(model: PreTrainedModel) -> str:
    """What the names of parameters in a model's `base_model` have before them in the model."""
    return f"{model.base_model_prefix}." if model.base_model is not model else ""


def token_table(model: PreTrainedModel) -> Tensor | None:
    """The embeddings of a model's tokens, a row each; None where it has none, as CANINE, which hashes characters."""
    try:
        table: Tensor = model.get_input_embeddings().weight
    except NotImplementedError:
        return None
    return table


def num_parameters(parameters: Any) -> int:
    """How many numbers the parameters hold; those in 4 bits lie two in a byte, and know how many they are."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in parameters)
    return sum(parameter.numel() if state is None else state.shape.numel() for parameter, state in states)


def freeze(module: nn.Module) -> None:
    """Exclude a module's parameters from training."""
    module.requires_grad_(False)


def _train_every_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the padding token learn where it is another one too, such as the end of a text; paddings are masked anyway.

    torch gives the row of a table that pads no gradient.
    """
    others = (getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "unk", "sep", "cls", "mask"))
    if tokenizer.pad_token_id not in others:
        return
    table = token_table(model)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight is table:
            module.padding_idx = None


def _keep_no_cache(model: PreTrainedModel) -> None:
    """Let a model keep no keys and values for tokens to come unless it is asked to: here none ever come.

    Each part is told, because a wrapper such as peft's may call the model's forward without its hooks.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and "use_cache" in inspect.signature(part.forward).parameters:
            part.register_forward_pre_hook(_without_cache, with_kwargs=True)


def _without_cache(part: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    return args, {**given, "use_cache": bool(given.get("use_cache"))}


def _check_fit(directory: Path, body: set[str], new: set[str], replaced: set[str]) -> None:
    """Raise TrainerError unless the checkpoint has the body that config.json describes."""
    if misfits := sorted(body & replaced):
        raise invalid(
            f"{directory}: weights of another size than config.json says: {', '.join(misfits[:3])}", COPY_AGAIN
        )
    if body <= new:
        raise invalid(f"{directory}: none of the weights fit the architecture in config.json", COPY_AGAIN)
    # Poolers are often left out of checkpoints and learnt anew; a layer without its weights is a torn model.
    if missing := sorted(name for name in body & new if "pooler" not in name):
        raise invalid(
            f"{directory}: {len(missing)} weights that config.json speaks of are missing: {', '.join(missing[:3])}",
            COPY_AGAIN,
        )


def _check_layers(directory: Path, model: PreTrainedModel, unexpected: set[str]) -> None:
    """Raise TrainerError when the checkpoint has more layers than config.json: they would be left out silently."""
    inside = body_parameters(model)
    kinds = {_LAYER.sub("#", name) for name in inside if _LAYER.search(name)}
    layers = {name[: number.end()] for name in inside for number in _LAYER.finditer(name)}
    further = _layers_of_further_tokens(model)

    def is_beyond(name: str) -> bool:
        beyond = [int(number[0]) for number in _LAYER.finditer(name) if name[: number.end()] not in layers]
        return _LAYER.sub("#", name) in kinds and bool(beyond) and beyond[0] not in further

    prefix = body_prefix(model)
    if surplus := {name for name in unexpected if is_beyond(name) or is_beyond(prefix + name)}:
        raise invalid(
            f"{directory}: {len(surplus)} weights of layers that config.json does not speak of: "
            + ", ".join(sorted(surplus)[:3]),
            "mend the number of layers there; for a smaller model load it and save_pretrained(...)",
        )


def _layers_of_further_tokens(model: PreTrainedModel) -> range:
    """The numbers of the layers after a model's own that predict further tokens, as DeepSeek's; none is loaded."""
    config = model.config.get_text_config()
    first = getattr(config, "num_hidden_layers", None) or 0
    counts = (getattr(config, name, None) for name in ("num_nextn_predict_layers", "num_mtp_layers"))
    return range(first, first + next(filter(None, counts), 0))
