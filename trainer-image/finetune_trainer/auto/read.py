"""Reads the facts of a run: of its rows, of its model by shape alone, and of the device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task as TaskName
from finetune_api.v1alpha1.strategy import AdapterStrategy, AdapterType, Placement
from finetune_trainer.adapters.modeling_adapters import features
from finetune_trainer.auto.facts import Device, Facts, Load, ModelFacts
from finetune_trainer.batching import Example
from finetune_trainer.device import CGROUP, autocast
from finetune_trainer.errors import TrainerError
from finetune_trainer.model_config import read_config
from finetune_trainer.models import num_parameters
from finetune_trainer.strategies import targets
from finetune_trainer.strategies.adapter import DEFAULT_RANK
from finetune_trainer.strategies.stacking import DEFAULT_REDUCTION_FACTOR
from finetune_trainer.tasks import Task

_PROCESS = Path("/proc")
_ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def read_facts(run: Run, task: Task, directory: Path, device: torch.device, num_processes: int = 1) -> Facts:
    """The facts of a run, of which each process trains a share of every batch; no weights are read.

    Raises TrainerError when the model does not fit the task.
    """
    spec = run.spec
    model = _model_of_shape(task, directory)
    share = -(-spec.training.batch_size // num_processes)
    return Facts(
        task=spec.task,
        rows=len({example.row for example in task.train}),
        units=task.num_units(task.train),
        has_retention=spec.evaluation.retention is not None,
        model=_model_facts(model, task, spec.task),
        training=_load(task, task.train, min(share, spec.training.micro_batch_size or share)),
        evaluation=_load(task, task.evaluation, spec.evaluation_batch_size()),
        device=Device(
            memory=memory_there(device),
            activation_bytes=_activation_bytes(run, device),
            keeps_attention=_keeps_attention(model, device),
        ),
    )


def memory_there(device: torch.device, cgroup: Path = CGROUP, process: Path = _PROCESS) -> int | None:
    """Bytes that training can still take: of the GPU, or of the machine within the container's limit; None if unknown.

    The host's free memory says nothing of the limit that the kernel kills a container at, so the lesser one counts.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (process / "meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError, IndexError):
        used = int((process / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2 and v1
            with contextlib.suppress(OSError, ValueError):  # "max"
                found.append(max(0, int((cgroup / name).read_text()) - used))
    return min(found, default=None)


def _model_of_shape(task: Task, directory: Path) -> PreTrainedModel:
    """The model without its weights, which takes milliseconds and no memory."""
    labels = {"num_labels": len(task.labels)} if task.labels else {}
    try:
        config = read_config(directory, **labels)
        with torch.device("meta"):
            model: PreTrainedModel = getattr(transformers, task.model_class).from_config(config)
    except Exception as error:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{directory}: config.json makes no {task.model_class}: {str(error).partition(chr(10))[0][:300]}",
            "check that the model fits the task",
        ) from None
    return model


def _model_facts(model: PreTrainedModel, task: Task, name: TaskName) -> ModelFacts:
    config = model.config.get_text_config()
    outputs = config.vocab_size if name == TaskName.TEXT_GENERATION else len(task.labels) or task.max_length
    return ModelFacts(
        kind=type(model).__name__,
        parameters=num_parameters(model.parameters()),
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=getattr(config, "num_attention_heads", 1),
        outputs=outputs,
        bottleneck_parameters=_bottleneck_parameters(model),
        lora_parameters=_lora_parameters(model),
    )


def _bottleneck_parameters(model: PreTrainedModel) -> int | None:
    try:
        places = targets.bottleneck_layers(model, Placement.HOULSBY)
    except TrainerError:
        return None
    widths = [width for _, width in _features(model, places)]
    inner = [max(1, width // DEFAULT_REDUCTION_FACTOR) for width in widths]
    return sum(2 * width * size + width + size for width, size in zip(widths, inner, strict=True))


def _lora_parameters(model: PreTrainedModel) -> int | None:
    places = targets.update_layers(AdapterStrategy(type=AdapterType.LORA), model, frozenset())
    return sum(DEFAULT_RANK * (inputs + outputs) for inputs, outputs in _features(model, places)) or None


def _features(model: PreTrainedModel, places: Sequence[str]) -> list[tuple[int, int]]:
    modules: dict[str, Any] = dict(model.base_model.named_modules())
    return [features(modules[place]) for place in places]


def _load(task: Task, examples: Sequence[Example], rows: int) -> Load:
    return Load(
        rows=min(rows, len(examples)),
        tokens=max((len(example.input_ids) for example in examples), default=0),
        units=max((task.num_units([example]) for example in examples), default=0),
    )


def _activation_bytes(run: Run, device: torch.device) -> int:
    with autocast(run.spec.training.precision, device):
        is_cast = torch.is_autocast_enabled(device.type)
    return 2 if is_cast else 4


def _keeps_attention(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether attention is computed without a fused kernel: by the model's own code, or on a CPU with dropout."""
    config: Any = model.config
    has_dropout = any(getattr(config, name, 0) for name in _ATTENTION_DROPOUTS)
    return config._attn_implementation == "eager" or (device.type == "cpu" and has_dropout)
