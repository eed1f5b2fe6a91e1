"""Adapters in the linear layers of any transformer, stacked, and the models with them that `from_pretrained` loads.

Houlsby et al. 2019 (arXiv 1902.00751, section 2.1), Pfeiffer et al. 2020 (arXiv 2005.00052): h <- h + U f(D h).
LoRA, Hu et al. 2021 (arXiv 2106.09685, section 4.1): W x + s B A x, with s = alpha / r, or alpha / sqrt(r) in rsLoRA
(Kalajdzievski 2023, arXiv 2312.03732). DoRA, Liu et al. 2024 (arXiv 2402.09353, section 4). IA3, Liu et al. 2022
(arXiv 2205.05638, section 3.3). A new adapter wraps what is below it, so those below never change.

This file imports nothing but torch and transformers, because an exported model carries a copy of it: loading one
runs this code, which is why `trust_remote_code=True` has to be said.

Legend of tensor shapes: I and O a layer's inputs and outputs, R the adapter's width or rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

INIT_STD = 1e-2  # near the identity at the start (Houlsby et al. 2019, section 3.6)
Linear: TypeAlias = nn.Linear | Conv1D
Below = Callable[[Tensor], Tensor]
"""What an adapter wraps: the linear layer with the adapters below. [..., I] -> [..., O]"""


class AdaptedConfig(PretrainedConfig):
    """The base model's configuration, and the adapters in it.

    An adapter is a JSON object: its `name`; `type` and the shape that goes with it; the `modules` it is in, by their
    paths in the model's body; the names of the adapters `below` it; the `class` of transformers that it was trained
    in, with the modules of its own `head` there and the names of its `labels`.
    """

    model_type = "finetune-adapters"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        adapters: list[dict[str, Any]] | None = None,
        base_digest: str = "",
        **kwargs: Any,
    ) -> None:
        self.base = base or {}
        self.adapters = adapters or []
        self.base_digest = base_digest
        super().__init__(**kwargs)


class BottleneckAdapter(nn.Module):
    """h + U gelu(D h), where h is the output of what is below; near the identity at the start."""

    def __init__(self, base: Linear, bottleneck: int, dropout: float) -> None:
        super().__init__()
        width = features(base)[1]
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor, below: Below, base: Linear) -> Tensor:
        hidden = below(inputs)
        return hidden + self.up(nn.functional.gelu(self.down(self.dropout(hidden))))


class LowRankAdapter(nn.Module):
    """What is below, plus s B A x; with a magnitude (DoRA) the sum's columns are scaled too. The identity at first."""

    def __init__(self, base: Linear, rank: int, scale: float, dropout: float, has_magnitude: bool) -> None:
        super().__init__()
        inputs, outputs = features(base)
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.magnitude = nn.Parameter(self._norm_O(base)) if has_magnitude else None

    def forward(self, inputs: Tensor, below: Below, base: Linear) -> Tensor:
        hidden = below(inputs)
        update = self.up(self.down(self.dropout(inputs)))
        if self.magnitude is None:
            return hidden + update * self.scale
        # The norm is a constant for the gradient (section 4.3 of DoRA's paper).
        ratio_O = (self.magnitude / self._norm_O(base)).view(1, -1)
        without_bias = hidden if base.bias is None else hidden - base.bias
        return hidden + ((ratio_O - 1) * without_bias + ratio_O * update * self.scale)

    @torch.no_grad()
    def _norm_O(self, base: Linear) -> Tensor:
        weight_OI = base.weight.T if isinstance(base, Conv1D) else base.weight
        update_OI = nn.functional.linear(self.down.weight.T, self.up.weight).T
        return torch.linalg.norm(weight_OI + self.scale * update_OI.to(weight_OI.dtype), dim=1)


class ScalingAdapter(nn.Module):
    """IA3: a factor for each output of what is below, or for each of its inputs. The identity at the start."""

    def __init__(self, base: Linear, at_input: bool) -> None:
        super().__init__()
        inputs, outputs = features(base)
        self.at_input = at_input
        self.factor = nn.Parameter(torch.ones(inputs if at_input else outputs))

    def forward(self, inputs: Tensor, below: Below, base: Linear) -> Tensor:
        return below(inputs * self.factor) if self.at_input else below(inputs) * self.factor


class AdaptedLinear(nn.Module):
    """A linear layer with adapters around it, from the first to the newest, by their number in the stack."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()

    def forward(self, inputs: Tensor) -> Tensor:
        through: Below = self.base
        for number in self.active:
            through = functools.partial(self.adapters[number], below=through, base=self.base)
        return through(inputs)


def features(linear: Linear) -> tuple[int, int]:
    """How many inputs and outputs a linear layer has, or GPT-2's transposed one."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features


def make_layer(adapter: Mapping[str, Any], base: Linear, path: str) -> nn.Module:
    """The layer of an adapter around one linear layer of the body."""
    dropout = float(adapter.get("dropout", 0.0))
    match adapter["type"]:
        case "Bottleneck":
            width = features(base)[1]
            return BottleneckAdapter(base, max(1, width // adapter["reduction_factor"]), dropout)
        case "LoRA" | "RSLoRA" | "DoRA" as kind:
            rank = adapter["rank"]
            scale = adapter["alpha"] / (rank**0.5 if kind == "RSLoRA" else rank)
            return LowRankAdapter(base, rank, scale, dropout, has_magnitude=kind == "DoRA")
        case "IA3":
            return ScalingAdapter(base, at_input=path in adapter["input_modules"])
        case other:
            raise ValueError(f"unknown type of adapter: {other}")


class AdaptedModel(PreTrainedModel):
    """A model of transformers with adapters in it. The newest adapter is active; `set_active` chooses another."""

    config_class = AdaptedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: AdaptedConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.model = _model_of(config, config.adapters[-1]) if base is None else base
        self.heads = nn.ModuleDict()
        """What the earlier adapters' models have of their own, by the adapter's number."""
        self._views: dict[str, list[Any]] = {}
        body = self.model.base_model
        for number, adapter in enumerate(config.adapters):
            _put_in(body, str(number), adapter, [path for path in adapter["modules"] if _has(body, path)])
        for number, adapter in enumerate(config.adapters[:-1]):
            self._add_view(str(number), adapter)
        self.set_active(config.adapters[-1]["name"])
        self.post_init()

    @property
    def adapter_names(self) -> list[str]:
        """The adapters from the bottom up."""
        return [adapter["name"] for adapter in self.config.adapters]

    @property
    def active_model(self) -> PreTrainedModel:
        """The model of transformers that computes now; those of other adapters share its layers."""
        shells = self._views.get(str(self.adapter_names.index(self.active)))
        if shells is None:
            return self.model
        for shell in shells:
            shell.training = self.training  # it is no part of this module, so train() and eval() do not reach it
        return shells[0]

    def set_active(self, name: str) -> None:
        """Use an adapter with those it was trained on, and its own head: the model that its own job wrote."""
        if name not in self.adapter_names:
            raise ValueError(f"no adapter {name!r}; there are {', '.join(self.adapter_names)}")
        self.active = name
        entry = self.config.adapters[self.adapter_names.index(name)]
        wanted = [str(number) for number, one in enumerate(self.adapter_names) if one in (*entry["below"], name)]
        for module in self.model.base_model.modules():
            if isinstance(module, AdaptedLinear):
                module.active = tuple(number for number in wanted if number in module.adapters)
        self.active_model.tie_weights()
        self.config.id2label = dict(enumerate(entry["labels"])) or self.config.id2label
        self.config.label2id = {label: number for number, label in self.config.id2label.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.active_model(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        active = self.active
        self.set_active(self.adapter_names[-1])  # whose labels the configuration has to name
        super().save_pretrained(*args, **kwargs)
        self.set_active(active)

    def layers(self, number: int, path: str) -> list[nn.Module]:
        """The layers of an adapter at a module of the body: one, or one in each model with a body of its own there."""
        bodies = [self.model.base_model, *(shells[0].base_model for shells in self._views.values())]
        linears = {id(one): one for one in (body.get_submodule(path) for body in bodies if _has(body, path))}
        return [one.adapters[str(number)] for one in linears.values() if str(number) in getattr(one, "adapters", ())]

    def _add_view(self, number: str, adapter: Mapping[str, Any]) -> None:
        """Keep what an earlier adapter's model has of its own, and a model of its class around the shared layers."""
        with torch.device("meta"):
            view = _model_of(self.config, adapter)
            for below, other in enumerate(self.config.adapters[: int(number) + 1]):
                if other["name"] in (*adapter["below"], adapter["name"]):
                    lacking = [path for path in other["modules"] if not _has(self.model.base_model, path)]
                    _put_in(view.base_model, str(below), other, lacking)
        own = own_modules(view, self.model, adapter)
        self.heads[number] = nn.ModuleDict({path.replace(".", "/"): view.get_submodule(path) for path in own})
        for module in self.heads[number].modules():
            if isinstance(module, AdaptedLinear):
                module.active = tuple(module.adapters)
        self._views[number] = _share(view, self.model, own)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the base initialises itself, and adapters do in their constructor."""


class AdaptedForSequenceClassification(AdaptedModel):
    """A classifier of texts with adapters."""


class AdaptedForTokenClassification(AdaptedModel):
    """A tagger with adapters."""


class AdaptedForQuestionAnswering(AdaptedModel):
    """A finder of answers with adapters."""


class AdaptedForCausalLM(AdaptedModel, GenerationMixin):
    """A language model with adapters."""

    def __init__(self, config: AdaptedConfig, base: PreTrainedModel | None = None) -> None:
        super().__init__(config, base)
        self.generation_config = self.model.generation_config

    def get_output_embeddings(self) -> Any:
        return self.active_model.get_output_embeddings()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the base model's own: its caches and its ways to go on are known to it alone."""
        model = self.active_model
        model.generation_config = self.generation_config
        return model.generate(*args, **kwargs)


def own_modules(view: PreTrainedModel, newest: PreTrainedModel, adapter: Mapping[str, Any]) -> list[str]:
    """Paths of the modules that an earlier adapter's model cannot share with the newest adapter's."""
    if type(view) is type(newest):
        return list(adapter["head"])
    body = view.base_model_prefix
    tied = {name.rpartition(".")[0] for name in view.all_tied_weights_keys}
    outside = [name for name, _ in view.named_children() if name != body and name not in tied]
    lacking = [
        f"{body}.{name}"
        for name, _ in view.base_model.named_children()
        if getattr(newest.base_model, name, None) is None
    ]
    return list(dict.fromkeys([*outside, *lacking, *(path for path in adapter["head"] if path.startswith(f"{body}."))]))


def _model_of(config: AdaptedConfig, adapter: Mapping[str, Any]) -> PreTrainedModel:
    """The model of transformers that an adapter was trained in, with new weights."""
    settings = dict(config.base)
    if adapter["labels"]:
        settings["id2label"] = dict(enumerate(adapter["labels"]))
        settings["label2id"] = {label: number for number, label in enumerate(adapter["labels"])}
    base_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model: PreTrainedModel = getattr(transformers, adapter["class"])(base_config)
    return model


def _put_in(body: nn.Module, number: str, adapter: Mapping[str, Any], paths: list[str]) -> None:
    """Add an adapter's layers around linear layers of the body."""
    for path in paths:
        linear: Any = body.get_submodule(path)
        if not isinstance(linear, AdaptedLinear):
            linear = AdaptedLinear(linear)
            parent, _, attribute = path.rpartition(".")
            setattr(body.get_submodule(parent), attribute, linear)
        layer = make_layer(adapter, linear.base, path)
        for module in layer.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]  # or transformers draws it anew
        device = linear.base.weight.device
        linear.adapters[number] = layer if device.type == "meta" else layer.to(device)


def _has(body: nn.Module, path: str) -> bool:
    try:
        return isinstance(body.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def _share(view: nn.Module, shared: Any, own: list[str], prefix: str = "") -> list[nn.Module]:
    """Put the shared layers in the places of a view's, except its own; returns the modules that are not shared."""
    shells = [view]
    for name, child in list(view.named_children()):
        path = f"{prefix}{name}"
        is_body = not prefix and name == view.base_model_prefix
        other = shared.base_model if is_body else getattr(shared, name, None)
        if path in own or other is None:
            continue
        if any(one.startswith(f"{path}.") for one in own):
            shells += _share(child, other, own, f"{path}.")
        else:
            setattr(view, name, other)
    return shells


AutoConfig.register(AdaptedConfig.model_type, AdaptedConfig, exist_ok=True)
AdaptedConfig.register_for_auto_class()
AdaptedForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
AdaptedForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
AdaptedForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
AdaptedForCausalLM.register_for_auto_class("AutoModelForCausalLM")
