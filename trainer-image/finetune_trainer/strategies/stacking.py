"""Adapters of our own layers: bottlenecks, and new adapters of any type on top of those of earlier jobs.

The earlier ones are frozen and wrapped, never changed (as MAD-X stacks them, Pfeiffer et al. 2020, arXiv 2005.00052):
with the new one set aside, each of them computes, with its own head, the very bits that it did when its job ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task as TaskName
from finetune_api.v1alpha1.strategy import AdapterStrategy, AdapterType, Placement
from finetune_trainer import storage
from finetune_trainer.adapters.earlier import EarlierAdapter, body_digest, read_adapters
from finetune_trainer.adapters.modeling_adapters import (
    AdaptedConfig,
    AdaptedForCausalLM,
    AdaptedForQuestionAnswering,
    AdaptedForSequenceClassification,
    AdaptedForTokenClassification,
    AdaptedLinear,
    AdaptedModel,
)
from finetune_trainer.data.sources import model_directory as directory_of
from finetune_trainer.data.sources import model_name
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded, load_model
from finetune_trainer.optim import Trained
from finetune_trainer.strategies import Tuning, targets
from finetune_trainer.strategies.adapter import DEFAULT_RANK, default_learning_rate

DEFAULT_REDUCTION_FACTOR = 16
CLASSES: dict[TaskName, type[AdaptedModel]] = {
    TaskName.TEXT_CLASSIFICATION: AdaptedForSequenceClassification,
    TaskName.TOKEN_CLASSIFICATION: AdaptedForTokenClassification,
    TaskName.QUESTION_ANSWERING: AdaptedForQuestionAnswering,
    TaskName.TEXT_GENERATION: AdaptedForCausalLM,
}


def prepare_stack(
    strategy: AdapterStrategy, run: Run, loaded: Loaded, model_directory: Path, note: Callable[[str], None]
) -> Tuning:
    """Put the earlier adapters into a model and a new one on top, and train that with its head. Raises TrainerError."""
    digest = body_digest(loaded)
    earlier, inputs = _earlier(strategy, run, loaded, model_directory, digest)
    new = _new_adapter(strategy, run, loaded, [one.entry["name"] for one in earlier])
    base_config = loaded.model.config
    config = AdaptedConfig(
        base=base_config.to_dict(),
        adapters=[*(one.entry for one in earlier), new],
        base_digest=digest,
        pad_token_id=base_config.pad_token_id,
        id2label=base_config.id2label,
        label2id=base_config.label2id,
    )
    # By identity, because the names of layers change when adapters are put around them.
    head = {id(parameter) for name, parameter in loaded.model.named_parameters() if name in loaded.head}
    model = _adapted(CLASSES[run.spec.task], config, loaded, earlier)
    _fill(model, earlier, loaded, model_directory)
    model.requires_grad_(False)
    trained = {}
    for name, parameter in model.named_parameters():
        is_head = id(parameter) in head
        if is_head or f".adapters.{len(earlier)}." in name:
            is_decayed = new["type"] != AdapterType.IA3
            trained[name] = Trained(parameter.requires_grad_(True), is_head=is_head, is_decayed=is_head or is_decayed)
    for one in earlier:
        note(f"{one.entry['name']} ({one.entry['type']}, {one.field}) stays frozen below the new adapter")

    def save(directory: Path) -> None:
        model.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)

    rate = default_learning_rate(strategy, run.spec.task)
    return Tuning(model, trained, rate, save, "transformers-remote-code", inputs=inputs)


def _new_adapter(strategy: AdapterStrategy, run: Run, loaded: Loaded, below: list[str]) -> dict[str, Any]:
    """The new adapter in AdaptedConfig's words. Raises TrainerError."""
    model = loaded.model
    labels = model.config.id2label
    adapter: dict[str, Any] = {
        "name": _unused(run.name, below),
        "type": strategy.type.value,
        "below": below,
        "class": type(model).__name__,
        "head": targets.head_modules(model, loaded.head),
        "labels": [labels[number] for number in range(len(labels))],
        "dropout": strategy.dropout,
    }
    if strategy.type == AdapterType.BOTTLENECK:
        adapter["modules"] = targets.bottleneck_layers(model, strategy.placement or Placement.HOULSBY)
        return adapter | {"reduction_factor": strategy.reduction_factor or DEFAULT_REDUCTION_FACTOR}
    adapter["modules"] = targets.update_layers(strategy, model, loaded.head)
    if not adapter["modules"]:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            "spec.strategy.adapter.targetModules names no linear layer of the model's body",
            "name linear layers, or leave it out",
        )
    if strategy.type == AdapterType.IA3:
        return adapter | {"input_modules": targets.matching((targets.input_pattern(),), adapter["modules"])}
    rank = strategy.rank or DEFAULT_RANK
    return adapter | {"rank": rank, "alpha": strategy.alpha or 2 * rank}


def _earlier(
    strategy: AdapterStrategy, run: Run, loaded: Loaded, model_directory: Path, base_digest: str
) -> tuple[list[EarlierAdapter], str]:
    """The adapters of all stackOn entries, each once, and a digest of the files they came from. Raises TrainerError."""
    base_name = model_name(run.spec.model, model_directory)
    stack: list[EarlierAdapter] = []
    digest = hashlib.sha256()
    for number, output in enumerate(strategy.stack_on):
        directory = directory_of(output, run)
        field = f"spec.strategy.adapter.stackOn[{number}]"
        names: dict[str, str] = {}
        for one in read_adapters(directory, field, loaded, base_name, base_digest):
            known = next((other for other in stack if _is_same(other, one, names)), None)
            if known is None:
                known = _renamed(one, names, [other.entry["name"] for other in stack])
                stack.append(known)
            names[one.entry["name"]] = known.entry["name"]
        files = (path for path in directory.iterdir() if path.suffix in (".json", ".safetensors"))
        storage.add_files(digest, sorted(files))
    return stack, digest.hexdigest() if strategy.stack_on else ""


def _is_same(one: EarlierAdapter, other: EarlierAdapter, names: Mapping[str, str]) -> bool:
    """Whether two outputs hold the same adapter: B's output holds A too where B was stacked on A."""
    if [names[name] for name in other.entry["below"]] != one.entry["below"]:
        return False
    ignored = {"name": "", "below": []}
    return one.entry | ignored == other.entry | ignored and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in [
            (one.head, other.head),
            *((layer, other.layers[path]) for path, layer in one.layers.items()),
        ]
    )


def _renamed(one: EarlierAdapter, names: Mapping[str, str], taken: list[str]) -> EarlierAdapter:
    entry = {
        **one.entry,
        "name": _unused(one.entry["name"], taken),
        "below": [names[name] for name in one.entry["below"]],
    }
    return EarlierAdapter(one.field, entry, one.layers, one.head)


def _unused(name: str, taken: list[str]) -> str:
    """The name, or the first of name-2, name-3, ... that is not taken."""
    candidates = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(one for one in candidates if one not in taken)


def _adapted(
    model_class: type[AdaptedModel], config: AdaptedConfig, loaded: Loaded, earlier: list[EarlierAdapter]
) -> AdaptedModel:
    try:
        return model_class(config, loaded.model)
    except AttributeError as error:  # a module is not there
        raise _misfit(earlier[-1].field if earlier else "spec.strategy.adapter", str(error)) from None


@torch.no_grad()
def _fill(model: AdaptedModel, earlier: list[EarlierAdapter], loaded: Loaded, model_directory: Path) -> None:
    """Put the weights of earlier adapters and their heads in their places. Raises TrainerError."""
    model.heads.to_empty(device="cpu")
    for number, one in enumerate(earlier):
        tensors = one.head
        if one.entry["class"] != type(loaded.model).__name__:  # its frozen parts too: a pooler, a language model's head
            tensors = _base_weights(one.entry, loaded, model_directory) | tensors
        head: Any = model.heads[str(number)]
        for key, module in head.items():
            _load_head(module, tensors, key.replace("/", "."), one.field)
        for path, layer in one.layers.items():
            for target in model.layers(number, path):
                _load(target, layer, one.field, path)


def _base_weights(entry: Mapping[str, Any], loaded: Loaded, model_directory: Path) -> dict[str, Tensor]:
    """The weights of the base model in another class of transformers."""
    labels = dict(enumerate(entry["labels"]))
    numbers = {label: number for number, label in labels.items()}
    model_class = getattr(transformers, entry["class"])
    base = load_model(model_class, model_directory, loaded.tokenizer, id2label=labels, label2id=numbers)
    return dict(base.model.state_dict())


def _load_head(module: nn.Module, tensors: Mapping[str, Tensor], path: str, field: str) -> None:
    """Load a module of a head; adapters in it are loaded by themselves."""
    adapted = {name for name, part in module.named_modules() if isinstance(part, AdaptedLinear)}
    found = {}
    for name in module.state_dict():
        layer, _, parameter = name.rpartition(".base.")
        plain = f"{layer}.{parameter}" if layer in adapted else name
        if f"{path}.{plain}" in tensors:
            found[name] = tensors[f"{path}.{plain}"]
        elif f"{path}.{name}" in tensors:
            found[name] = tensors[f"{path}.{name}"]
        elif ".adapters." not in name:
            raise _misfit(field, f"the weights of {path}.{plain} are missing")
    _load_tensors(module, found, field, path)


def _load(module: nn.Module, tensors: Mapping[str, Tensor], field: str, path: str) -> None:
    if missing := set(module.state_dict()) ^ set(tensors):
        raise _misfit(field, f"{path}: {', '.join(sorted(missing))} is missing or not known")
    _load_tensors(module, tensors, field, path)


def _load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], field: str, path: str) -> None:
    places = module.state_dict()
    for name, tensor in tensors.items():
        if places[name].shape != tensor.shape:
            raise _misfit(field, f"{path}.{name} is {[*tensor.shape]}, and the model needs {[*places[name].shape]}")
        places[name].copy_(tensor)


def _misfit(field: str, how: str) -> TrainerError:
    return TrainerError(
        ExitCode.MODEL_INVALID, f"{field}: the adapter does not fit the model: {how}", "copy it again; it may be torn"
    )
