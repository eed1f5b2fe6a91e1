"""Prompt tuning: a soft prompt and the task's head are trained, the model itself is untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from finetune_api.run import Run
from finetune_api.v1alpha1.strategy import PromptTuningStrategy, PromptType
from finetune_trainer.data.sources import model_name
from finetune_trainer.models import Loaded, longest_input
from finetune_trainer.optim import Trained
from finetune_trainer.prompts.encoder import PromptEncoder
from finetune_trainer.prompts.initial import initial_embeddings, initial_prefix
from finetune_trainer.prompts.modeling_prompt import PromptConfig, PromptedModel, SoftPrompt
from finetune_trainer.prompts.place import (
    body_of,
    check_architecture,
    no_room,
    positions_taken,
    refused,
    tokens_before,
)
from finetune_trainer.prompts.trial import check_read, check_same, pefts_logits
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task

DEFAULT_LEARNING_RATES = {PromptType.PROMPT: 1e-2, PromptType.PREFIX: 1e-2, PromptType.P_TUNING: 1e-3}
DEFAULT_HEAD_LEARNING_RATE = 1e-3
_GENERATES = "AutoModelForCausalLM"


def prepare_prompt_tuning(
    strategy: PromptTuningStrategy,
    run: Run,
    task: Task,
    loaded: Loaded,
    model_directory: Path,
    note: Callable[[str], None],
) -> Tuning:
    """Put a soft prompt into a model and train it with the head. Raises TrainerError when the model cannot take it."""
    if loaded.model.config.is_encoder_decoder:
        raise refused(strategy, loaded.model, "it has an encoder and a decoder")
    limit = longest_input(model_directory, loaded.tokenizer)
    if strategy.num_virtual_tokens >= limit:  # an encoder's prefix takes no positions, but starts from what it reads
        raise no_room(strategy, limit)
    model = _with_prompt(strategy, run, task, loaded, note)
    generates = task.model_class == _GENERATES

    def save(directory: Path) -> None:
        tokenizer = copy.deepcopy(loaded.tokenizer)
        room = limit - positions_taken(strategy, loaded.model.config)
        tokenizer.model_max_length = min(tokenizer.model_max_length, room)
        if not generates:
            tokenizer.padding_side = "right"  # the model's own code counts the prompt's place from the left
        tokenizer.save_pretrained(directory)
        if generates:
            from finetune_trainer.prompts.peft_format import save_prompt  # peft takes seconds to import

            base = run.spec.model
            prompt = model.prompt().detach()
            save_prompt(directory, prompt, loaded.model, model_name(base, model_directory), base.revision)
            loaded.model.config.save_pretrained(directory)
            loaded.model.generation_config.save_pretrained(directory)
        else:
            save_with_model(model, directory)

    learning_rate = DEFAULT_LEARNING_RATES[strategy.type]
    # A language model's head is a part of it, and pretrained.
    trained = _trained(model, frozenset() if generates else loaded.head, run, learning_rate)
    return Tuning(model, trained, learning_rate, save, "peft" if generates else "transformers-remote-code")


def _with_prompt(
    strategy: PromptTuningStrategy, run: Run, task: Task, loaded: Loaded, note: Callable[[str], None]
) -> PromptedModel:
    """The frozen model with a prompt that is trained: it is tried first. Raises TrainerError."""
    base, is_prefix = loaded.model, strategy.type == PromptType.PREFIX
    inputs = task.collate([min(task.train, key=lambda example: len(example.input_ids))]).inputs
    path, body = body_of(base, inputs)
    check_architecture(strategy, base, body)
    weight, layers = initial_embeddings(strategy, task, base, run.spec.training.seed, note), list[str]()
    if is_prefix:
        weight, layers = initial_prefix(strategy, base, body, task.train[0].input_ids[0], weight)
    generates = task.model_class == _GENERATES
    theirs = pefts_logits(strategy, base, weight, inputs) if generates else None
    config = PromptConfig.for_base(
        base,
        task.model_class,
        is_prefix=is_prefix,
        prompt_shape=[*weight.shape],
        num_tokens_before=tokens_before(base.config),
        prefixed_layers=layers,
        body=path,
    )
    base.requires_grad_(False)
    prompt: nn.Module = PromptEncoder(weight) if strategy.type == PromptType.P_TUNING else SoftPrompt(weight)
    model = PromptedModel(config, base, prompt)
    ours = check_read(strategy, model, inputs)
    if theirs is not None:
        check_same(strategy, base, ours, theirs)
    return model


def save_with_model(model: PromptedModel, directory: Path) -> None:
    """Write a model with its prompt and the code that puts it in; of P-tuning's encoder the prompt that it makes."""
    body = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("prompt.")}
    prompt: Tensor = model.prompt().detach()
    model.save_pretrained(directory, state_dict={**body, "prompt.weight": prompt})


def _trained(model: PromptedModel, head: frozenset[str], run: Run, default_rate: float) -> dict[str, Trained]:
    """The prompt, which is never decayed, and the head.

    The head keeps a rate of its own: a prompt's is far too high for a layer.
    """
    training = run.spec.training
    head_scale = 1.0
    if training.head_learning_rate is None:
        head_scale = min(1.0, DEFAULT_HEAD_LEARNING_RATE / (training.learning_rate or default_rate))
    trained = {}
    for name, parameter in model.named_parameters():
        if name.startswith("prompt."):
            trained[name] = Trained(parameter, is_decayed=False)
        elif name.removeprefix("model.") in head:
            trained[name] = Trained(parameter.requires_grad_(True), is_head=True, rate_scale=head_scale)
    return trained
