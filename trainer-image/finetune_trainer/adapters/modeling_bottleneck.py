"""Bottleneck adapters for any transformer: the layers, and a model that `from_pretrained` loads.

Houlsby et al. 2019 (arXiv 1902.00751, section 2.1): h <- h + W_up f(W_down h), at the output of the attention and of
the feed-forward block of every layer, after the projection back to the hidden width and before the residual is added.
Pfeiffer et al. 2020 (arXiv 2005.00052) put one after the feed-forward block only.

This file imports nothing but torch and transformers, because an exported model carries a copy of it: loading one
runs this code, which is why `trust_remote_code=True` has to be said.
"""

from __future__ import annotations

import re
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

# Where the attention and the feed-forward block project back to the hidden width, by the names transformers uses.
ATTENTION_OUTPUTS = (
    r"attention\.output\.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa
    r"attention\.out_lin",  # DistilBERT
    r"self_attn\.o_proj",  # Llama, Mistral, Qwen, Gemma
    r"attn\.Wo",  # ModernBERT
)
FEED_FORWARD_OUTPUTS = (
    r"(?<!attention\.)output\.dense",
    r"ffn\.lin2",
    r"mlp\.down_proj",
    r"mlp\.Wo",
)
INIT_STD = 1e-2  # near the identity at the start (Houlsby et al. 2019, section 3.6)


class UnknownArchitecture(ValueError):
    """No place for adapters is known in a model."""


class BottleneckConfig(PretrainedConfig):
    """The base model's configuration, and the shape of the adapters in it."""

    model_type = "finetune-bottleneck"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        base_class: str = "",
        placement: str = "Houlsby",
        reduction_factor: int = 16,
        dropout: float = 0.0,
        adapters: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.base = base or {}
        self.base_class = base_class
        self.placement = placement
        self.reduction_factor = reduction_factor
        self.dropout = dropout
        self.adapters = adapters or []
        super().__init__(**kwargs)

    @classmethod
    def for_base(cls, model: PreTrainedModel, **shape: Any) -> BottleneckConfig:
        """The configuration for adapters in a given model."""
        labels = {"id2label": model.config.id2label, "label2id": model.config.label2id}
        return cls(
            base=model.config.to_dict(),
            base_class=type(model).__name__,
            pad_token_id=model.config.pad_token_id,
            **labels,
            **shape,
        )


class BottleneckAdapter(nn.Module):
    """h + W_up gelu(W_down h), near the identity at the start. [..., D] -> [..., D]"""

    def __init__(self, width: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            nn.init.zeros_(layer.bias)
            # Or transformers draws it anew, as wide as the base model's layers.
            layer._is_hf_initialized = True  # type: ignore[assignment]

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.up(nn.functional.gelu(self.down(self.dropout(hidden))))


class AdaptedLinear(nn.Module):
    """A linear layer followed by its adapters, from the first to the newest."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.base(hidden)
        for adapter in self.adapters.values():
            hidden = adapter(hidden)
        return hidden


class AdaptedForSequenceClassification(PreTrainedModel):
    """A sequence classifier of transformers with adapters in it."""

    config_class = BottleneckConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: BottleneckConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if base is None:
            settings = dict(config.base)
            base_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            base = getattr(transformers, config.base_class)(base_config)
        self.model = base
        for name in config.adapters:
            add_adapter(base, name, config)
        self.post_init()

    @classmethod
    def wrap(cls, base: PreTrainedModel, config: BottleneckConfig) -> AdaptedForSequenceClassification:
        """Adapters in a model that is already loaded. Raises UnknownArchitecture."""
        return cls(config, base)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the base initialises itself, and adapters do in their constructor."""


def add_adapter(model: nn.Module, name: str, config: BottleneckConfig) -> None:
    """Append an adapter at every place of the configured placement. Raises UnknownArchitecture."""
    attention, feed_forward = _linear_layers(model, ATTENTION_OUTPUTS), _linear_layers(model, FEED_FORWARD_OUTPUTS)
    if not attention or len(attention) != len(feed_forward):  # a place for only some layers is no known one either
        raise UnknownArchitecture(
            f"no place for bottleneck adapters is known in {type(model).__name__}; known are BERT, RoBERTa, ELECTRA, "
            "DeBERTa, DistilBERT, ModernBERT and decoders with o_proj and down_proj"
        )
    places = FEED_FORWARD_OUTPUTS if config.placement == "Pfeiffer" else (*ATTENTION_OUTPUTS, *FEED_FORWARD_OUTPUTS)
    for path, module in _linear_layers(model, places):
        adapted = module if isinstance(module, AdaptedLinear) else AdaptedLinear(module)
        width = adapted.base.out_features
        weight = adapted.base.weight
        adapter = BottleneckAdapter(width, max(1, width // config.reduction_factor), config.dropout)
        adapted.adapters[name] = adapter.to(weight.device) if weight.device.type != "meta" else adapter
        parent, _, attribute = path.rpartition(".")
        setattr(model.get_submodule(parent), attribute, adapted)


def _linear_layers(model: nn.Module, names: tuple[str, ...]) -> list[tuple[str, nn.Linear | AdaptedLinear]]:
    pattern = re.compile(rf"(?:^|\.)(?:{'|'.join(names)})$")
    return [
        (path, module)
        for path, module in model.named_modules()
        if pattern.search(path) and isinstance(module, nn.Linear | AdaptedLinear)
    ]


AutoConfig.register(BottleneckConfig.model_type, BottleneckConfig, exist_ok=True)
BottleneckConfig.register_for_auto_class()
AdaptedForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
