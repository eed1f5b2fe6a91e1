"""Which linear layers of a model an adapter goes into, by the names that transformers uses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.strategy import AdapterStrategy, AdapterType, Placement
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import body_prefix

LINEAR = (nn.Linear, Conv1D)
# Where the attention and the feed-forward block project back to the hidden width.
ATTENTION_OUTPUTS = (
    r"attention\.output\.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa
    r"attention\.out_lin",  # DistilBERT
    r"self_attn\.o_proj",  # Llama, Mistral, Qwen, Gemma
    r"attn\.Wo",  # ModernBERT
    r"attn\.c_proj",  # GPT-2
)
FEED_FORWARD_OUTPUTS = (
    r"(?<!attention\.)output\.dense",
    r"ffn\.lin2",
    r"mlp\.down_proj",
    r"mlp\.Wo",
    r"mlp\.c_proj",
)
# Where keys and values come from; in ModernBERT and GPT-2 the queries come from the same layer.
KEYS_AND_VALUES = (
    r"self\.(?:key|value)",
    r"(?:key|value)_proj",
    r"attention\.[kv]_lin",
    r"self_attn\.[kv]_proj",
    r"attn\.[kv]",
    r"attn\.Wqkv",
    r"attn\.c_attn",
)
# Mamba's layers, told by these parameters, may read the weights of those two and pass the layers by, always or with
# faster kernels: an update beside them would count for nothing.
_STATE_SPACE = ("A_log", "D")
_PASSED_BY = ("dt_proj", "out_proj")
_KNOWN = (
    "known are BERT, RoBERTa, ELECTRA, DeBERTa{versions}, DistilBERT, ModernBERT, GPT-2, and decoders with o_proj and "
    "down_proj (Llama, Mistral, Qwen, Gemma)"
)


def linear_layers(module: nn.Module) -> list[str]:
    """Paths of the linear layers in a module."""
    return [path for path, one in module.named_modules() if isinstance(one, LINEAR)]


def bottleneck_layers(model: PreTrainedModel, placement: Placement) -> list[str]:
    """Paths in the body of the layers that bottleneck adapters follow. Raises TrainerError when none are known."""
    layers = linear_layers(model.base_model)
    attention, feed_forward = matching(ATTENTION_OUTPUTS, layers), matching(FEED_FORWARD_OUTPUTS, layers)
    if not attention or len(attention) != len(feed_forward):  # a place for only some layers is no known one either
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"spec.strategy.adapter: no place for bottleneck adapters is known in {type(model).__name__}; "
            + _KNOWN.format(versions=""),
            "use type LoRA, or a model of a listed kind",
        )
    wanted = set(feed_forward) if placement == Placement.PFEIFFER else {*attention, *feed_forward}
    return [path for path in layers if path in wanted]


def update_layers(strategy: AdapterStrategy, model: PreTrainedModel, head: frozenset[str]) -> list[str]:
    """Paths in the body of the layers that the LoRA family or IA3 goes into. Raises TrainerError."""
    layers = [path for path in linear_layers(model.base_model) if not _is_head(path, model, head)]
    if strategy.type == AdapterType.IA3:
        return matching((scaling_pattern(strategy, model),), layers)
    if strategy.target_modules is None:
        return [path for path in layers if path not in passed_by(model.base_model)]
    _check_names(strategy.target_modules, model)
    return matching(tuple(map(re.escape, strategy.target_modules)), layers)


def passed_by(module: nn.Module) -> list[str]:
    """Paths of the linear layers in a module that take no update, because their weights are read without them."""
    spaces = [(path, one) for path, one in module.named_modules() if all(hasattr(one, name) for name in _STATE_SPACE)]
    read = {f"{path}.{name}" for path, one in spaces for name in _PASSED_BY if _reads_weight(type(one), name)}
    return [path for path in linear_layers(module) if path in read]


def _reads_weight(kind: type[nn.Module], name: str) -> bool:
    """Whether the code of a layer reads the weight of that part of it, as Jamba's and Zamba's do not of `out_proj`."""
    return f"self.{name}.weight" in inspect.getsource(kind)


def scaling_pattern(strategy: AdapterStrategy, model: PreTrainedModel) -> str:
    """A pattern of the paths that IA3 goes into. Raises TrainerError when none are known."""
    if strategy.target_modules is not None:
        _check_names(strategy.target_modules, model)
        return "|".join(map(re.escape, strategy.target_modules))
    layers = linear_layers(model.base_model)
    if not matching(KEYS_AND_VALUES, layers) or not matching(FEED_FORWARD_OUTPUTS, layers):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"spec.strategy.adapter: no place for IA3 is known in {type(model).__name__}; "
            # The first makes queries, keys and values in one layer, a head's after the other's.
            + _KNOWN.format(versions=" v2 and v3"),
            "name the modules that give keys and values, and the feed-forward block's second one, in targetModules",
        )
    return "|".join((*KEYS_AND_VALUES, *FEED_FORWARD_OUTPUTS))


def input_pattern() -> str:
    """A pattern of the paths whose inputs IA3 scales, which are the feed-forward block's inner activations."""
    return "|".join((*FEED_FORWARD_OUTPUTS, "fc2", "fc_out", "dense_4h_to_h"))


def whole_path(pattern: str) -> str:
    """A pattern of paths that end so, for peft, which matches from their start."""
    return rf"(?:.*\.)?(?:{pattern})"


def matching(patterns: tuple[str, ...], paths: Sequence[str]) -> list[str]:
    """The paths that end as one of the patterns says."""
    pattern = re.compile(whole_path("|".join(patterns)))
    return [path for path in paths if pattern.fullmatch(path)]


def head_modules(model: nn.Module, head: frozenset[str], prefix: str = "") -> list[str]:
    """The largest modules that hold nothing but the head.

    Their parts are not named: peft itself adds "classifier" and "score", and a part in one of those is then trained
    under a name that it cannot be loaded by.
    """
    found = []
    for name, child in model.named_children():
        path = f"{prefix}{name}"
        parameters = [f"{path}.{inner}" for inner, _ in child.named_parameters()]
        if parameters and head.issuperset(parameters):
            found.append(path)
        elif not head.isdisjoint(parameters):
            found += head_modules(child, head, f"{path}.")
    return found


def _check_names(names: Sequence[str], model: nn.Module) -> None:
    """Raise TrainerError unless each name is a module's; peft passes over those that are not, if one is."""
    paths = [path for path, _ in model.named_modules()]
    unknown = [name for name in names if not any(f".{path}".endswith(f".{name}") for path in paths)]
    if unknown:
        known = dict.fromkeys(path.rpartition(".")[2] for path in linear_layers(model))
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.adapter.targetModules: the model has no module {', '.join(unknown)}",
            f"its linear layers are {', '.join(list(known)[:20])}",
        )
    without_effect = dict.fromkeys(path.rpartition(".")[2] for path in passed_by(model))
    if useless := [name for name in names if name.rpartition(".")[2] in without_effect]:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.adapter.targetModules: {', '.join(useless)} takes no update in {type(model).__name__}, "
            "which may read its weights without calling it",
            "leave it out",
        )


def _is_head(path: str, model: PreTrainedModel, head: frozenset[str]) -> bool:
    return f"{body_prefix(model)}{path}.weight" in head
