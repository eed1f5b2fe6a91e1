"""Soft prompts for any transformer: the trained numbers, and a model that `from_pretrained` loads.

Prompt: Lester et al. 2021 (arXiv 2104.08691, section 2): trained vectors beside the embeddings of the input. A decoder
has them before the text, an encoder after the first token, so that [CLS] keeps its place.
Prefix: Li and Liang 2021 (arXiv 2101.00190, section 4): trained keys and values, which every layer attends to before
those of the input. They take no place among an encoder's positions; a decoder counts them before the text.

The body of the model gets the prompt and gives back the states of the input's own positions alone. So every head is
right as it is: the one that reads [CLS], the last token, the mean over the mask, or each token.

This file imports nothing but torch and transformers, because an exported model carries a copy of it: loading one
runs this code, which is why `trust_remote_code=True` has to be said.

Legend of tensor shapes: B rows, L tokens of the input, P of the prompt, E width of the embeddings, N layers, H heads
that have keys, K width of a head.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PREFIXED = "finetune_prefix"


class PromptConfig(PretrainedConfig):
    """The base model's configuration, and the shape and place of its soft prompt."""

    model_type = "finetune-prompt"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        base_class: str = "",
        is_prefix: bool = False,
        prompt_shape: list[int] | None = None,
        num_tokens_before: int = 0,
        prefixed_layers: list[str] | None = None,
        body: str = "",
        **kwargs: Any,
    ) -> None:
        self.base = base or {}
        self.base_class = base_class
        self.is_prefix = is_prefix
        self.prompt_shape = prompt_shape or [1, 1]
        """[P, E], or [N, 2, H, P, K] for keys and values."""
        self.num_tokens_before = num_tokens_before
        """Tokens of the input before a prompt of embeddings: 0 or 1."""
        self.prefixed_layers = prefixed_layers or []
        """An encoder's attention layers, by their path in the body; a decoder takes a prefix as its cache."""
        self.body = body
        """The path of the module that gets the inputs; by default the model's `base_model`."""
        super().__init__(**kwargs)

    @classmethod
    def for_base(cls, model: PreTrainedModel, auto_class: str, **shape: Any) -> PromptConfig:
        """The configuration for a soft prompt in a given model, which `auto_class` is to load."""
        return cls(
            auto_map={auto_class: f"{__name__.rpartition('.')[2]}.{PromptedModel.__name__}"},
            base=model.config.to_dict(),
            base_class=type(model).__name__,
            pad_token_id=model.config.pad_token_id,
            id2label=model.config.id2label,
            label2id=model.config.label2id,
            **shape,
        )


class SoftPrompt(nn.Module):
    """The trained numbers of a prompt, as they are."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.weight


class PromptedModel(PreTrainedModel):
    """A model of transformers whose body gets a soft prompt. Inputs and outputs are those of the model itself."""

    config_class = PromptConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(
        self, config: PromptConfig, base: PreTrainedModel | None = None, prompt: nn.Module | None = None
    ) -> None:
        super().__init__(config)
        if base is None:
            settings = dict(config.base)
            base_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            base = getattr(transformers, config.base_class)(base_config)
        self.model = base
        self.prompt = SoftPrompt(torch.zeros(config.prompt_shape)) if prompt is None else prompt
        body = base.get_submodule(config.body) if config.body else base.base_model
        self._parameters_of_body = [*inspect.signature(type(body).forward).parameters][1:]
        if config.prefixed_layers:
            self._attend_to_prefix(body)
        else:
            body.register_forward_pre_hook(self._with_prompt, with_kwargs=True)
            body.register_forward_hook(self._without_prompt)
        self.post_init()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the base initialises itself, and the prompt is given or loaded."""

    def _with_prompt(
        self, body: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], Any]:
        given = dict(zip(self._parameters_of_body, args, strict=False)) | kwargs
        if given.get("return_dict") is False:  # the heads take either, and the states have to be found by name
            given["return_dict"] = True
        return (), self._with_cache(given) if self.config.is_prefix else self._with_embeddings(body, given)

    def _with_embeddings(self, body: PreTrainedModel, given: dict[str, Any]) -> dict[str, Any]:
        ids, embeddings_BLE = given.pop("input_ids", None), given.pop("inputs_embeds", None)
        if embeddings_BLE is None:
            embeddings_BLE = body.get_input_embeddings()(ids)
        prompt_PE = self.prompt().to(embeddings_BLE.dtype)
        num_tokens = len(prompt_PE)
        given["inputs_embeds"] = self._insert(embeddings_BLE, prompt_PE.expand(len(embeddings_BLE), -1, -1))
        if (mask_BL := given.get("attention_mask")) is not None:
            given["attention_mask"] = self._insert(mask_BL, mask_BL.new_ones(len(mask_BL), num_tokens))
        if (global_BL := given.get("global_attention_mask")) is not None:  # Longformer's
            given["global_attention_mask"] = self._insert(global_BL, global_BL.new_zeros(len(global_BL), num_tokens))
        if (types_BL := given.get("token_type_ids")) is not None:
            given["token_type_ids"] = self._insert(types_BL, types_BL[:, :1].expand(-1, num_tokens))
        if (positions_BL := given.get("position_ids")) is not None:
            own_P = torch.arange(num_tokens, device=positions_BL.device)
            before = self.config.num_tokens_before
            moved_BL = torch.cat([positions_BL[:, :before], positions_BL[:, before:] + num_tokens], 1)
            given["position_ids"] = self._insert(moved_BL, positions_BL[:, :1] + before + own_P)
        return given

    def _with_cache(self, given: dict[str, Any]) -> dict[str, Any]:
        ids = given.get("input_ids")
        batch_size = len(given["inputs_embeds"] if ids is None else ids)
        prefix = self.prompt()
        num_tokens, cache = prefix.shape[3], DynamicCache()
        for layer, (keys_HPK, values_HPK) in enumerate(prefix):
            cache.update(*(part.expand(batch_size, -1, -1, -1) for part in (keys_HPK, values_HPK)), layer)
        given["past_key_values"] = cache
        if (mask_BL := given.get("attention_mask")) is not None:
            given["attention_mask"] = torch.cat([mask_BL.new_ones(batch_size, num_tokens), mask_BL], 1)
        if (positions_BL := given.get("position_ids")) is not None:
            given["position_ids"] = positions_BL + num_tokens
        return given

    def _without_prompt(self, body: PreTrainedModel, args: Any, output: Any) -> Any:
        if not self.config.is_prefix:
            output.last_hidden_state = self._remove(output.last_hidden_state)
            if output.get("hidden_states") is not None:
                output.hidden_states = tuple(self._remove(states) for states in output.hidden_states)
        return output

    def _insert(self, input_BL: Tensor, prompt_BP: Tensor) -> Tensor:
        before = self.config.num_tokens_before
        return torch.cat([input_BL[:, :before], prompt_BP, input_BL[:, before:]], 1)

    def _remove(self, states: Tensor) -> Tensor:
        before = self.config.num_tokens_before
        return torch.cat([states[:, :before], states[:, before + self.config.prompt_shape[0] :]], 1)

    def _attend_to_prefix(self, body: PreTrainedModel) -> None:
        for number, path in enumerate(self.config.prefixed_layers):
            body.get_submodule(path).prefix_of_layer = functools.partial(self._prefix_of, number)
        body.config._attn_implementation = PREFIXED

    def _prefix_of(self, layer: int) -> Tensor:
        return self.prompt()[layer]


def prefixed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Scaled dot-product attention [B, H, L, K] over a layer's prefix and then its own keys and values."""
    prefix: Tensor = module.prefix_of_layer()  # type: ignore[operator]
    keys, values = (part.to(key.dtype).expand(len(key), -1, -1, -1) for part in prefix)
    if attention_mask is not None:
        visible: float = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = nn.functional.pad(attention_mask, (keys.shape[2], 0), value=visible)
    key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return attended


AttentionInterface.register(PREFIXED, prefixed_attention)
AttentionMaskInterface.register(PREFIXED, sdpa_mask)
AutoConfig.register(PromptConfig.model_type, PromptConfig, exist_ok=True)
PromptConfig.register_for_auto_class()
