"""The LoRA family and IA3 through peft: updates of linear layers, saved in peft's format or merged into the model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.exit_codes import ExitCode
from finetune_api.loading import BASE_SETTINGS, FINETUNE
from finetune_api.run import Run
from finetune_api.v1alpha1.strategy import AdapterStrategy, AdapterType
from finetune_trainer.adapters.earlier import TASK_TYPES, body_digest
from finetune_trainer.data.sources import model_name
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded
from finetune_trainer.optim import Trained
from finetune_trainer.strategies import Tuning, quantized, targets
from finetune_trainer.strategies.adapter import DEFAULT_RANK, default_learning_rate

_TUNED = peft.tuners.tuners_utils.BaseTunerLayer


def prepare_lora(
    strategy: AdapterStrategy, run: Run, loaded: Loaded, model_directory: Path, note: Callable[[str], None]
) -> Tuning:
    """Put updates on a model's linear layers and train them with its head. Raises TrainerError."""
    config = _config(strategy, run, loaded)
    config.revision = run.spec.model.revision
    base_config = copy.deepcopy(loaded.model.config)
    digest = "" if strategy.merge else body_digest(loaded)
    kept = quantized.quantize(loaded) if strategy.quantization is not None else []
    try:
        model = peft.get_peft_model(loaded.model, config)
    except ValueError as error:
        raise _impossible(strategy, loaded.model, str(error)) from None
    trained = {
        # Shrinking IA3's factors towards zero would shrink the activations themselves.
        name: Trained(parameter, is_head="modules_to_save" in name, is_decayed=".ia3_l." not in name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }

    def save(directory: Path) -> None:
        if strategy.merge:
            save_merged(model, directory)
            note("the updates are merged into the model's weights, in float32")
        else:
            model.save_pretrained(directory)
            _name_base(directory, model_name(run.spec.model, model_directory))
            # Labels and their names, which peft's own files lack, and what a later job checks its base model by.
            about: dict[str, Any] = {"name": run.name, "base_digest": digest, "task_type": TASK_TYPES[run.spec.task]}
            if strategy.quantization is not None:
                about |= {"quantization": strategy.quantization.value, BASE_SETTINGS: quantized.settings(kept)}
            setattr(base_config, FINETUNE, about)
            base_config.save_pretrained(directory)
            if loaded.model.can_generate():  # where it stops may be learnt anew
                loaded.model.generation_config.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)

    rate = default_learning_rate(strategy, run.spec.task)
    return Tuning(model, trained, rate, save, "transformers" if strategy.merge else "peft")


def _impossible(strategy: AdapterStrategy, model: PreTrainedModel, words: str) -> TrainerError:
    """The error for updates that peft cannot put into a model, by what it says."""
    if "ParamWrapper" in words:  # peft's layer for weights that are a layer's for all experts at once
        what = "DoRA" if strategy.type == AdapterType.DORA else "dropout"
        return TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.adapter: {what} is not possible in the experts of {type(model).__name__}",
            "use LoRA without dropout, or name layers outside the experts in targetModules, such as q_proj",
        )
    return TrainerError(
        ExitCode.SPEC_INVALID,
        f"spec.strategy.adapter.targetModules: {words.splitlines()[0][:300]}",
        "name modules of the model, or leave it out for all linear layers",
    )


def _name_base(directory: Path, name: str) -> None:
    """Write what the base model is found by later; peft has put the directory there that it was read from."""
    path = directory / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"base_model_name_or_path": name}, indent=2) + "\n", encoding="utf-8")


def _config(strategy: AdapterStrategy, run: Run, loaded: Loaded) -> peft.PeftConfig:
    # peft knows heads by three names; what the checkpoint did not have must be trained whatever its name.
    task_type = peft.TaskType(TASK_TYPES[run.spec.task])
    # Peft's class for answers keeps token types and positions from the model (0.21); without a task's class none does.
    shared: dict[str, Any] = {"task_type": None if task_type == peft.TaskType.QUESTION_ANS else task_type}
    shared["modules_to_save"] = targets.head_modules(loaded.model, loaded.head) or None
    if strategy.merge:
        _check_not_tied(strategy, loaded.model)
    if strategy.type == AdapterType.IA3:
        return peft.IA3Config(
            target_modules=targets.whole_path(targets.scaling_pattern(strategy, loaded.model)),
            feedforward_modules=targets.whole_path(targets.input_pattern()),
            **shared,
        )
    # For its checks; peft knows more kinds of layers.
    known = targets.update_layers(strategy, loaded.model, loaded.head)
    if strategy.target_modules is None and not known:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"spec.strategy.adapter: no place for {strategy.type} is known in {type(loaded.model).__name__}: it has no "
            "linear layers",
            "use full tuning, or another model",
        )
    rank = strategy.rank or DEFAULT_RANK
    return peft.LoraConfig(
        r=rank,
        lora_alpha=strategy.alpha or 2 * rank,
        lora_dropout=strategy.dropout,
        target_modules=list(strategy.target_modules) if strategy.target_modules else "all-linear",
        exclude_modules=targets.passed_by(loaded.model) or None,
        use_rslora=strategy.type == AdapterType.RSLORA,
        use_dora=strategy.type == AdapterType.DORA,
        **shared,
    )


def _check_not_tied(strategy: AdapterStrategy, model: PreTrainedModel) -> None:
    """Raise TrainerError when a module to be merged shares its weights: the other one would change too."""
    tied = {name for pair in model.all_tied_weights_keys.items() for name in pair}
    paths = [name.removesuffix(".weight") for name in tied]
    for name in strategy.target_modules or ():
        if any(f".{path}".endswith(f".{name}") for path in paths):
            raise TrainerError(
                ExitCode.SPEC_INVALID,
                f"spec.strategy.adapter.merge: {name} shares its weights with another layer, which would change too",
                f"leave {name} out of targetModules, or do not merge",
            )


def save_merged(model: peft.PeftModel, directory: Path) -> None:
    """Write the tuned model as a plain one. The model in memory stays as it is, so the two can be compared."""
    base = model.get_base_model()
    base.save_pretrained(directory, state_dict=_merged_weights(base))


def _merged_weights(base: PreTrainedModel) -> dict[str, Tensor]:
    """The weights by the names that they have in a plain model; one layer at a time is held twice."""
    merged: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for path, module in base.named_modules():
        if isinstance(module, _TUNED) and not path.startswith(tuple(f"{outer}." for outer in layers)):
            layer = copy.deepcopy(module)
            for part in layer.modules():  # of experts, one update is around the next
                if isinstance(part, _TUNED):
                    part.merge(safe_merge=True)
            layers[path] = layer.get_base_layer().state_dict()
    for name, tensor in base.state_dict().items():
        path = next((path for path in layers if name.startswith(f"{path}.")), None)
        if path is not None:
            merged |= {f"{path}.{inner}": weight for inner, weight in layers[path].items()}
        elif ".original_module." not in name:
            merged[name.replace(".modules_to_save.default", "")] = tensor
    return merged
