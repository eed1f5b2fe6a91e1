"""Reads the outputs of earlier adapter jobs to stack on: JSON and safetensors, whatever wrote them; none of their code.

Two formats: our own (`adapters/modeling_adapters.py`), and peft's for a single LoRA, rsLoRA, DoRA or IA3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.exit_codes import ExitCode
from finetune_api.loading import FINETUNE, MODEL_CLASSES
from finetune_api.v1alpha1.job import Task
from finetune_trainer import storage, weights
from finetune_trainer.adapters.modeling_adapters import AdaptedConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded, body_prefix

_CONFIG, _PEFT_CONFIG, _PEFT_WEIGHTS = "config.json", "adapter_config.json", f"adapter_model{weights.SUFFIX}"
TASK_TYPES = {
    Task.TEXT_CLASSIFICATION: "SEQ_CLS",
    Task.TOKEN_CLASSIFICATION: "TOKEN_CLS",
    Task.QUESTION_ANSWERING: "QUESTION_ANS",
    Task.TEXT_GENERATION: "CAUSAL_LM",
}
"""Peft's words for the tasks."""
_AUTO_CLASSES = {word: MODEL_CLASSES[task] for task, word in TASK_TYPES.items()}
_PEFT_PARAMETERS = {
    ".lora_A.weight": "down.weight",
    ".lora_B.weight": "up.weight",
    ".lora_magnitude_vector": "magnitude",
    ".ia3_l": "factor",
}
# peft's settings that change the forward pass in ways that we have no layer for, with the values that do not.
_PEFT_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "lora_bias": (False,),
    "layer_replication": (None,),
    "init_lora_weights": (True, "gaussian"),  # others change the base weights
    "trainable_token_indices": (None,),
    "target_parameters": (None,),
    **dict.fromkeys(
        ("use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config"),
        (None, False),
    ),
    **dict.fromkeys(("monteclora_config", "mica"), (None, False)),
}


@dataclass(frozen=True, slots=True)
class EarlierAdapter:
    """One adapter with its head, as an earlier job left it."""

    field: str
    """The stackOn entry that it comes from, for messages."""
    entry: dict[str, Any]
    """What it is, in AdaptedConfig's words."""
    layers: dict[str, dict[str, Tensor]]
    """The weights of its layer at each of its modules."""
    head: dict[str, Tensor]
    """The weights of its head, by their names in its model."""


def read_adapters(
    directory: Path, field: str, loaded: Loaded, base_name: str, base_digest: str
) -> list[EarlierAdapter]:
    """The adapters in a job's output, from the bottom up. `base_name` is what peft calls the job's base model.

    Raises TrainerError when it is no such output, not whole, or of another base model.
    """
    try:
        names = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"{field}: {directory}: {error.strerror}",
            "check the uri, and that the job is Complete",
        ) from None
    if not names & {_CONFIG, _PEFT_CONFIG}:
        raise _no_output(field, directory, f"it has neither {_CONFIG} nor {_PEFT_CONFIG}")
    try:
        if storage.MANIFEST in names:  # it is lost when only the model's own files are copied on
            storage.check_directory(directory, (".json", weights.SUFFIX))
        # peft by itself writes none; the base model's then has to do, and the labels have no names.
        ours = loaded.model.config.to_dict()
        config = json.loads((directory / _CONFIG).read_text(encoding="utf-8")) if _CONFIG in names else ours
        if _PEFT_CONFIG in names:
            peft_config = json.loads((directory / _PEFT_CONFIG).read_text(encoding="utf-8"))
            same_name = peft_config["base_model_name_or_path"] == base_name
            their_digest = config.get(FINETUNE, {}).get("base_digest", base_digest if same_name else None)
            _check_base(field, config, their_digest, loaded, base_digest)
            return [_read_peft(directory, field, config, peft_config, loaded)]
        if config.get("model_type") != AdaptedConfig.model_type:
            raise _no_output(field, directory, f"it is a {config.get('model_type')} model without adapters")
        _check_base(field, config["base"], config["base_digest"], loaded, base_digest)
        return _read_own(directory, field, config, loaded)
    except (storage.NotWhole, SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{field}: {directory}: not a whole output of an adapter job: {type(error).__name__}: {str(error)[:200]}",
            "copy it again; it may be incomplete",
        ) from None


def body_digest(loaded: Loaded) -> str:
    """A digest over the pretrained weights of a model's body, which tells whether two jobs had the same base model.

    Poolers are left out: not every task's model has one.
    """
    model, digest = loaded.model, hashlib.sha256()
    body = body_prefix(model)
    for name, parameter in sorted(model.base_model.named_parameters()):
        if "pooler" not in name and f"{body}{name}" not in loaded.head:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _check_base(field: str, theirs: Mapping[str, Any], digest: str | None, loaded: Loaded, our_digest: str) -> None:
    """Raise TrainerError unless an adapter was trained on the job's base model."""
    ours = loaded.model.config
    if theirs["model_type"] != ours.model_type:
        raise _other_base(field, f"on a {theirs['model_type']} model, and spec.model is a {ours.model_type} model")
    their_config = type(ours).from_dict(dict(theirs))
    for size in ("hidden_size", "num_hidden_layers", "intermediate_size"):
        one, other = getattr(their_config, size, None), getattr(ours, size, None)
        if one != other:
            raise _other_base(field, f"on a model whose {size} is {one}, and spec.model's is {other}")
    if digest is None:
        raise _other_base(field, "on a base model of another name, and does not say what that holds")
    if digest != our_digest:
        raise _other_base(field, "on a model of the same shape as spec.model, but with other weights")


def _read_own(directory: Path, field: str, config: dict[str, Any], loaded: Loaded) -> list[EarlierAdapter]:
    entries = [_checked(entry, loaded) for entry in config["adapters"]]
    newest = len(entries) - 1
    for number, entry in enumerate(entries):
        if unknown := set(entry["below"]) - {other["name"] for other in entries[:number]}:
            raise ValueError(f"{entry['name']} is on {min(unknown)}, which is not there")
    tensors = _tensors_beside_base(directory, entries[newest]["head"])
    body = f"model.{_class(entries[newest]['class'], loaded).base_model_prefix}"
    found = []
    for number, entry in enumerate(entries):
        in_head = f"heads.{number}."
        layers: dict[str, dict[str, Tensor]] = {path: {} for path in entry["modules"]}
        head: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            place, _, parameter = name.partition(f".adapters.{number}.")
            # What the newest model's body has no place for (a pooler) is among what an earlier model has of its own.
            path = place.removeprefix(f"{body}.").rpartition("/")[2]
            if parameter and path in layers:
                layers[path][parameter] = tensor
            elif number == newest and name.startswith("model."):
                head[name.removeprefix("model.")] = tensor
            elif name.startswith(in_head):
                head[name.removeprefix(in_head).replace("/", ".")] = tensor
        found.append(_whole(EarlierAdapter(field, entry, layers, _under(head, entry["head"]))))
    return found


def _tensors_beside_base(directory: Path, head: list[str]) -> dict[str, Tensor]:
    """All weights in an output of ours, except the base model's, which may be large."""
    starts = ("heads.", *(f"model.{path}." for path in head))
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob(f"*{weights.SUFFIX}")):
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(starts) or ".adapters." in name]  # noqa: SIM118
            tensors |= {name: file.get_tensor(name) for name in names}
    return tensors


def _read_peft(
    directory: Path, field: str, config: dict[str, Any], peft_config: dict[str, Any], loaded: Loaded
) -> EarlierAdapter:
    for setting, plain in _PEFT_PLAIN.items():
        if peft_config.get(setting, plain[0]) not in plain:
            raise TrainerError(
                ExitCode.SPEC_INVALID,
                f"{field}: {directory}: an adapter with {setting} {peft_config[setting]!r} cannot be stacked on",
                "stack on one that was trained by a FineTuneJob",
            )
    about = config.get(FINETUNE, {})
    if bits := about.get("quantization"):
        raise _other_base(field, f"on a base model in {bits}, and would compute something else on a whole one")
    task_type = peft_config["task_type"] or about.get("task_type")
    if task_type not in _AUTO_CLASSES:
        raise ValueError(f"task_type {task_type} cannot be stacked on; {', '.join(_AUTO_CLASSES)} can")
    auto_class = getattr(transformers, _AUTO_CLASSES[task_type])
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(type(loaded.model.config).from_dict(config))
    layers: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    input_modules = []
    for name, tensor in load_file(directory / _PEFT_WEIGHTS).items():
        place, parameter = _peft_parameter(name.removeprefix("base_model.model."))
        if parameter is None:
            head[place] = tensor
            continue
        path = place.removeprefix(f"{model.base_model_prefix}.")
        if parameter == "factor" and tensor.shape[0] == 1:
            input_modules.append(path)
        layers.setdefault(path, {})[parameter] = tensor.flatten() if parameter == "factor" else tensor
    if peft_config.get("modules_to_save") and not head:
        raise ValueError("the weights of its head are missing")
    labels = model.config.id2label
    if FINETUNE not in config:
        outputs = [tensor.shape[0] for tensor in head.values() if tensor.ndim == 2]
        labels = {number: f"LABEL_{number}" for number in range(min(outputs, default=2))}
    entry = {
        "name": config.get(FINETUNE, {}).get("name", directory.name),
        "modules": sorted(layers),
        "below": [],
        "class": type(model).__name__,
        "head": sorted({name.rpartition(".")[0] for name in head}),
        "labels": [labels[number] for number in range(len(labels))],
        **_peft_shape(peft_config, sorted(input_modules)),
    }
    return _whole(EarlierAdapter(field, _checked(entry, loaded), layers, head))


def _peft_parameter(name: str) -> tuple[str, str | None]:
    """A tensor's name in peft as its module's path and our name for the parameter; None for one of a head."""
    for ending, parameter in _PEFT_PARAMETERS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), parameter
    return name, None


def _peft_shape(peft_config: Mapping[str, Any], input_modules: list[str]) -> dict[str, Any]:
    """What peft's configuration says of an adapter's layers, in AdaptedConfig's words."""
    if peft_config["peft_type"] == "IA3":
        return {"type": "IA3", "input_modules": input_modules}
    if peft_config["peft_type"] != "LORA":
        raise ValueError(f"peft_type {peft_config['peft_type']} cannot be stacked on; LORA and IA3 can")
    is_dora, is_rslora = bool(peft_config.get("use_dora")), bool(peft_config.get("use_rslora"))
    if is_dora and is_rslora:
        raise ValueError("DoRA with rsLoRA's scale cannot be stacked on")
    kind = "DoRA" if is_dora else "RSLoRA" if is_rslora else "LoRA"
    return {"type": kind, "rank": peft_config["r"], "alpha": peft_config["lora_alpha"]}


def _checked(entry: Mapping[str, Any], loaded: Loaded) -> dict[str, Any]:
    """An entry of AdaptedConfig with what is expected in it and nothing else. Raises ValueError and its kin."""
    kept = {key: entry[key] for key in ("name", "type", "class")}
    kept |= {key: [str(one) for one in entry[key]] for key in ("modules", "below", "head", "labels")}
    _class(entry["class"], loaded)
    if entry["type"] == "IA3":
        kept["input_modules"] = [str(one) for one in entry["input_modules"]]
    for key in {"Bottleneck": ("reduction_factor",), "IA3": ()}.get(entry["type"], ("rank", "alpha")):
        kept[key] = int(entry[key])
        if kept[key] < 1:
            raise ValueError(f"{key} is {kept[key]}")
    return kept  # without dropout: what is frozen has none


def _whole(adapter: EarlierAdapter) -> EarlierAdapter:
    """The adapter, if it has weights for all that it names; raises ValueError."""
    empty = [path for path, layer in adapter.layers.items() if not layer]
    empty += [path for path in adapter.entry["head"] if not _under(adapter.head, [path])]
    if not adapter.layers:
        raise ValueError("the weights of its layers are missing")
    if empty:
        raise ValueError(f"the weights of {empty[0]} are missing")
    return adapter


def _class(name: str, loaded: Loaded) -> type[PreTrainedModel]:
    """The class of transformers that an entry names, which must be one for the base model's architecture."""
    found: Any = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise ValueError(f"{name} is no model of transformers")
    model: type[PreTrainedModel] = found
    if model.config_class is not type(loaded.model.config):
        raise ValueError(f"{name} is of another architecture than {type(loaded.model).__name__}")
    return model


def _under(tensors: Mapping[str, Tensor], paths: list[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if any(name.startswith(f"{path}.") for path in paths)}


def _no_output(field: str, directory: Path, why: str) -> TrainerError:
    return TrainerError(
        ExitCode.SPEC_INVALID,
        f"{field}: {directory} is not the output of an adapter job: {why}",
        "name the output of a job with strategy adapter (not merged)",
    )


def _other_base(field: str, how: str) -> TrainerError:
    return TrainerError(
        ExitCode.SPEC_INVALID,
        f"{field}: the adapter was trained {how}",
        "stack only adapters of one base model, and name that in spec.model",
    )
