"""What a soft prompt starts from: random numbers, or tokens' embeddings; a prefix from what the model makes of them.

Legend of tensor shapes: P tokens of the prompt, E width of the embeddings, V vocabulary, N layers, H heads that have
keys, K width of a head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.strategy import PromptInitialization, PromptTuningStrategy
from finetune_trainer.errors import TrainerError
from finetune_trainer.prompts.place import is_decoder, refused, tokens_before
from finetune_trainer.tasks import Task

NUM_FREQUENT = 5000  # Lester et al. 2021, section 3.2: sampled from the 5,000 most common tokens
_RECORDED = "finetune_record"


def initial_embeddings(
    strategy: PromptTuningStrategy, task: Task, model: PreTrainedModel, seed: int, note: Callable[[str], None]
) -> Tensor:
    """The embeddings [P, E] that a prompt starts from (Lester et al. 2021, section 3.2). Raises TrainerError.

    Random numbers have the spread of the vocabulary's embeddings. A class label is the mean of its tokens; what is
    left of the prompt is filled with frequent tokens.
    """
    table_VE = model.get_input_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(seed)
    count = strategy.num_virtual_tokens
    if strategy.initialization == PromptInitialization.RANDOM:
        return torch.randn(count, table_VE.shape[1], generator=generator) * table_VE.std()
    pieces: list[list[int]] = []
    if strategy.initialization == PromptInitialization.TEXT:
        pieces = _text(strategy, task, note)
    elif strategy.initialization == PromptInitialization.LABELS:
        pieces = _labels(strategy, task)
    if len(pieces) < count:
        pieces += [[token] for token in _frequent(task, count - len(pieces), generator)]
    return torch.stack([table_VE[piece].mean(0) for piece in pieces])


def _frequent(task: Task, count: int, generator: torch.Generator) -> list[int]:
    """Tokens drawn from the most frequent ones of the training rows; each once, while there are enough."""
    special = set(task.tokenizer.all_special_ids)
    counter = Counter(token for example in task.train for token in example.input_ids if token not in special)
    tokens = [token for token, _ in counter.most_common(NUM_FREQUENT)]
    order = torch.randperm(len(tokens), generator=generator).tolist()
    return [tokens[order[number % len(tokens)]] for number in range(count)]


def _text(strategy: PromptTuningStrategy, task: Task, note: Callable[[str], None]) -> list[list[int]]:
    """The tokens of the given text; repeated while it is shorter than the prompt."""
    tokens, count = task.tokenizer(strategy.text, add_special_tokens=False)["input_ids"], strategy.num_virtual_tokens
    if not tokens:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.promptTuning.text: the model's tokenizer makes no tokens of {strategy.text!r}",
            "give a text in a language that the model knows",
        )
    if len(tokens) > count:
        note(f"the prompt starts from the first {count} of its text's {len(tokens)} tokens")
    return [[tokens[number % len(tokens)]] for number in range(count)]


def _labels(strategy: PromptTuningStrategy, task: Task) -> list[list[int]]:
    """The tokens of each class label."""
    if len(task.labels) > strategy.num_virtual_tokens:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.strategy.promptTuning.numVirtualTokens is {strategy.num_virtual_tokens}, but initialization Labels "
            f"needs one for each of the {len(task.labels)} labels",
            f"use at least {len(task.labels)}, or initialization Vocabulary",
        )
    pieces = [task.tokenizer(label, add_special_tokens=False)["input_ids"] for label in task.labels]
    return [piece for piece in pieces if piece]


@torch.no_grad()
def initial_prefix(
    strategy: PromptTuningStrategy, model: PreTrainedModel, body: PreTrainedModel, first_token: int, prompt_PE: Tensor
) -> tuple[Tensor, list[str]]:
    """Keys and values [N, 2, H, P, K] that the model computes for a prompt, and an encoder's layers by path.

    Real activations are what makes a prefix learn (Li and Liang 2021, section 6.5). An encoder gets its first token
    before the prompt, as with any input; `body` is the part of the model that gets its inputs. Raises TrainerError when
    the model's attention cannot be reached.
    """
    before = tokens_before(model.config)
    first_LE = body.get_input_embeddings().weight[[first_token] * before]
    inputs = {"inputs_embeds": torch.cat([first_LE, prompt_PE])[None]}
    was_training = model.training
    model.eval()
    try:
        layers, paths = _from_cache(body, inputs) if is_decoder(model.config) else _recorded(body, inputs)
    finally:
        model.train(was_training)
    if len(layers) != model.config.num_hidden_layers:
        raise refused(strategy, model, "its attention takes no keys and values besides its own")
    if len({part.shape for layer in layers for part in layer}) > 1:
        raise refused(strategy, model, "its layers have keys of different sizes")
    return torch.stack([torch.cat([keys, values]) for keys, values in layers])[..., before:, :].contiguous(), paths


def _from_cache(body: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Sequence[tuple[Tensor, Tensor]], list[str]]:
    """Keys and values of a decoder's layers, each [1, H, P, K]; none when its cache holds something else."""
    cache = getattr(body(**inputs, use_cache=True), "past_key_values", None)  # RecurrentGemma keeps its own to itself
    layers = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(cache, "layers", ())]
    return [(keys, values) for keys, values in layers if keys is not None and values is not None], []


def _recorded(body: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Sequence[tuple[Tensor, Tensor]], list[str]]:
    """The same of an encoder's, and their paths; none when it does not call transformers' attention functions."""
    layers, modules = [], []

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        layers.append((key, value))
        modules.append(module)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(_RECORDED, record)
    AttentionMaskInterface.register(_RECORDED, sdpa_mask)
    usual = body.config._attn_implementation
    body.config._attn_implementation = _RECORDED
    try:
        body(**inputs)
    finally:
        body.config._attn_implementation = usual
    path_of = {id(module): path for path, module in body.named_modules()}
    return layers, [path_of[id(module)] for module in modules]
