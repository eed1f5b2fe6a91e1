"""How a model is tuned: full, distillation, prompt tuning, adapters, or chosen for you."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.v1alpha1.sources import ModelSource
from finetune_api.values import Decimal, NonNegative, Positive, Unique

ModuleName = Annotated[str, Field(min_length=1, max_length=128)]
Layer = Annotated[int, Field(ge=0, le=1023)]
Dropout = Annotated[float, Decimal(ge=0, lt=1)]


class GradualUnfreezing(Contract):
    """Train the head first, then one more layer from the top at a time (Howard and Ruder 2018, section 3.3)."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    """Steps between two layers."""


class FullStrategy(Contract):
    """Every parameter is trained, except layers frozen here."""

    frozen_layers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Freeze the embeddings and this many layers from the bottom; 0 freezes nothing."""
    layer_decay: Annotated[float, Decimal(gt=0, le=1)] = 1.0
    """Each layer's learning rate is this times that of the layer above it; 1 is one rate for all."""
    gradual_unfreezing: GradualUnfreezing | None = None
    """Thaw layers from the top down while training."""
    l2_to_start: NonNegative = 0.0
    """Weight of the squared distance to the starting weights, against forgetting."""


class AdapterType(StrEnum):
    """Kinds of adapter layers."""

    BOTTLENECK = "Bottleneck"
    LORA = "LoRA"
    RSLORA = "RSLoRA"
    DORA = "DoRA"
    IA3 = "IA3"


_LORA_FAMILY = (AdapterType.LORA, AdapterType.RSLORA, AdapterType.DORA)


class Placement(StrEnum):
    """Where bottleneck adapters go in each layer."""

    HOULSBY = "Houlsby"
    PFEIFFER = "Pfeiffer"


class Quantization(StrEnum):
    """How few bits a frozen base model is kept in."""

    NF4 = "NF4"


class AdapterStrategy(Contract):
    """New small layers are trained; the model itself is untouched."""

    type: AdapterType = AdapterType.BOTTLENECK
    """Bottleneck (Houlsby et al. 2019), LoRA (Hu et al. 2021), RSLoRA, DoRA, or IA3 (Liu et al. 2022)."""
    placement: Placement | None = None
    """Bottleneck: after attention and feed-forward block (Houlsby, the default) or after the latter only (Pfeiffer)."""
    reduction_factor: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Bottleneck: the hidden width divided by the adapter's width; 16 by default."""
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """LoRA family: rank of the update; 8 by default."""
    alpha: Annotated[int, Field(ge=1, le=4096)] | None = None
    """LoRA family: scale of the update (alpha / rank); twice the rank by default."""
    dropout: Dropout = 0.0
    """Dropout at the adapter's input."""
    target_modules: Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=32), Unique()] | None = None
    """Names of the modules that get an update; by default all linear ones (LoRA family), or those of IA3's paper."""
    stack_on: Annotated[tuple[ModelSource, ...], Field(max_length=8)] = ()
    """Outputs of earlier adapter jobs, from the bottom up; they stay frozen below the new adapter."""
    quantization: Quantization | None = None
    """LoRA family: keep the base model in 4 bits (NF4; QLoRA, Dettmers et al. 2023), for those that do not fit."""
    merge: bool = False
    """LoRA family and IA3: put the updates into the model's weights at the end; the output is then a plain model."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.type == 'Bottleneck' || (!has(self.placement) && !has(self.reductionFactor))",
            message="placement and reductionFactor can only be given for type Bottleneck",
            holds=lambda self: (
                self.type == AdapterType.BOTTLENECK or (self.placement is None and self.reduction_factor is None)
            ),
        ),
        Rule(
            cel="self.type != 'Bottleneck' || (!has(self.rank) && !has(self.alpha) && !has(self.targetModules))",
            message="rank, alpha and targetModules cannot be given for type Bottleneck; its size is reductionFactor",
            holds=lambda self: (
                self.type != AdapterType.BOTTLENECK
                or (self.rank is None and self.alpha is None and self.target_modules is None)
            ),
        ),
        Rule(
            cel="self.type != 'IA3' || (!has(self.rank) && !has(self.alpha))",
            message="rank and alpha cannot be given for type IA3, which has no rank",
            holds=lambda self: self.type != AdapterType.IA3 or (self.rank is None and self.alpha is None),
        ),
        Rule(
            cel="self.type != 'IA3' || double(self.dropout) == 0.0",
            message="dropout cannot be given for type IA3, which only scales",
            holds=lambda self: self.type != AdapterType.IA3 or self.dropout == 0,
            field=".dropout",
        ),
        Rule(
            cel="!self.merge || self.type != 'Bottleneck'",
            message="merge cannot be used with type Bottleneck: it is not linear, so no plain model is equal to it",
            holds=lambda self: not self.merge or self.type != AdapterType.BOTTLENECK,
            field=".merge",
        ),
        Rule(
            cel="!self.merge || self.stackOn.size() == 0",
            message="merge and stackOn exclude each other: merged, the earlier adapters could not be used alone again",
            holds=lambda self: not self.merge or not self.stack_on,
            field=".merge",
        ),
        Rule(
            cel="!has(self.quantization) || self.type in ['LoRA', 'RSLoRA', 'DoRA']",
            message="quantization can only be given for types LoRA, RSLoRA and DoRA",
            holds=lambda self: self.quantization is None or self.type in _LORA_FAMILY,
            field=".quantization",
        ),
        Rule(
            cel="!has(self.quantization) || (!self.merge && self.stackOn.size() == 0)",
            message="quantization excludes merge and stackOn: weights in 4 bits are not those that either builds on",
            holds=lambda self: self.quantization is None or not (self.merge or self.stack_on),
            field=".quantization",
        ),
    )


class PromptType(StrEnum):
    """Kinds of soft prompts."""

    PROMPT = "Prompt"
    PREFIX = "Prefix"
    P_TUNING = "PTuning"


class PromptInitialization(StrEnum):
    """What soft prompts start from."""

    RANDOM = "Random"
    VOCABULARY = "Vocabulary"
    TEXT = "Text"
    LABELS = "Labels"


class PromptTuningStrategy(Contract):
    """Trainable embeddings are put before the input; the model itself is untouched."""

    type: PromptType = PromptType.PROMPT
    """Prompt (Lester et al. 2021), Prefix (Li and Liang 2021) or PTuning (Liu et al. 2021)."""
    num_virtual_tokens: Annotated[int, Field(ge=1, le=1024)] = 20
    """Length of the soft prompt."""
    initialization: PromptInitialization = PromptInitialization.VOCABULARY
    """What the prompt starts from: random numbers, embeddings of frequent tokens, of a text, or of the class labels."""
    text: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """The text for initialization Text."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.initialization == 'Text') == has(self.text)",
            message="text must be given for initialization Text, and only then",
            holds=lambda self: (self.initialization == PromptInitialization.TEXT) == (self.text is not None),
            field=".text",
        ),
    )


class Divergence(StrEnum):
    """How the student's distribution is compared with the teacher's."""

    FORWARD_KL = "ForwardKL"
    REVERSE_KL = "ReverseKL"
    JENSEN_SHANNON = "JensenShannon"


class ResponseDistillation(Contract):
    """The student matches the teacher's outputs (Hinton et al. 2015)."""

    weight: NonNegative = 1.0
    """Weight of this term."""
    temperature: Positive = 2.0
    """Softens both distributions; the loss is scaled by its square."""
    divergence: Divergence = Divergence.FORWARD_KL
    """Which divergence is minimised."""
    top_k: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Keep only the teacher's k largest logits and the mass of the rest; all by default."""


class HiddenLoss(StrEnum):
    """How hidden states are compared."""

    MSE = "MSE"
    COSINE = "Cosine"


class LayerPair(Contract):
    """A student layer that learns from a teacher layer; 0 is the first."""

    student: Layer
    """Student layer."""
    teacher: Layer
    """Teacher layer."""


class FeatureDistillation(Contract):
    """The student matches the teacher's hidden states or attention (Romero et al. 2014; Jiao et al. 2019)."""

    weight: NonNegative = 1.0
    """Weight of this term."""
    hidden: HiddenLoss = HiddenLoss.MSE
    """How hidden states are compared; a learned projection bridges different widths and is not exported."""
    attention: bool = False
    """Also match attention distributions; heads' means where the numbers of heads differ."""
    layer_map: Annotated[tuple[LayerPair, ...], Field(max_length=64), Unique("student")] = ()
    """Which layers match which; by default spread evenly, the last with the last."""


class RelationDistillation(Contract):
    """The student matches relations between samples or between layers of the teacher."""

    weight: NonNegative = 1.0
    """Weight of this term."""
    distance: NonNegative = 1.0
    """Between samples: weight of distances (Park et al. 2019, section 3.2.1)."""
    angle: NonNegative = 2.0
    """Between samples: weight of angles (Park et al. 2019, section 3.2.2)."""
    layers: NonNegative = 0.0
    """Between layers: weight of the flow between layers (after Yim et al. 2017), as similarities of their tokens."""
    self_attention: NonNegative = 0.0
    """Weight of MiniLM's query-key and value-value relations of the last layer (Wang et al. 2020)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="double(self.distance) > 0.0 || double(self.angle) > 0.0 || double(self.layers) > 0.0"
            " || double(self.selfAttention) > 0.0",
            message="give a weight above 0 to at least one of distance, angle, layers, selfAttention",
            holds=lambda self: bool(self.distance or self.angle or self.layers or self.self_attention),
        ),
    )


class DistillationStrategy(Contract):
    """A student (spec.model) learns from a teacher, then from the target task."""

    teacher: ModelSource
    """The tuned teacher."""
    student_layers: Annotated[tuple[Layer, ...], Field(min_length=1, max_length=256), Unique()] | None = None
    """Make the student from these layers of spec.model, in this order; all of them by default. 0 is the first."""
    response: ResponseDistillation | None = None
    """Response-based: the teacher's logits."""
    feature: FeatureDistillation | None = None
    """Feature-based: hidden states and attention."""
    relation: RelationDistillation | None = None
    """Relation-based: between samples, between layers."""
    task_weight: NonNegative = 0.5
    """Weight of the task's own loss on labelled rows while distilling; 0 learns from the teacher alone."""
    task_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """The last steps are on the task's loss alone (a second stage); 0 has none."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.response) || has(self.feature) || has(self.relation)",
            message="give at least one of response, feature, relation",
            holds=lambda self: any((self.response, self.feature, self.relation)),
        ),
        Rule(
            cel="has(self.response) || double(self.taskWeight) > 0.0 || self.taskSteps > 0",
            message="without response the student's head learns from labels only: give taskWeight or taskSteps above 0",
            holds=lambda self: self.response is not None or self.task_weight > 0 or self.task_steps > 0,
            field=".taskWeight",
        ),
    )

    def needs_attention(self) -> bool:
        """Whether attention itself is compared."""
        return (self.feature is not None and self.feature.attention) or (
            self.relation is not None and self.relation.self_attention > 0
        )


class Preference(StrEnum):
    """What an automatic choice favours."""

    ACCURACY = "Accuracy"
    COST = "Cost"


class AutoStrategy(Contract):
    """Let the trainer choose full tuning or adapters by data, model and memory; the choice and why go into status."""

    prefer: Preference = Preference.ACCURACY
    """What to favour where both fit into memory; Cost takes adapters."""


class Strategy(Contract):
    """Exactly one approach."""

    full: FullStrategy | None = None
    """Full-model tuning."""
    adapter: AdapterStrategy | None = None
    """Adapter layers."""
    prompt_tuning: PromptTuningStrategy | None = None
    """Soft prompts."""
    distillation: DistillationStrategy | None = None
    """A small student learns from a teacher."""
    auto: AutoStrategy | None = None
    """Chosen by the trainer."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="[has(self.full), has(self.adapter), has(self.promptTuning), has(self.distillation), has(self.auto)]"
            ".filter(given, given).size() == 1",
            message="give exactly one of full, adapter, promptTuning, distillation, auto",
            holds=lambda self: len(self.given()) == 1,
        ),
    )

    def given(self) -> list[str]:
        """Names (as in a manifest) of the approaches that are given."""
        return list(self.to_json())

    @property
    def name(self) -> str:
        """The approach as one word, for columns and labels: Full, Bottleneck, LoRA, PromptTuning, ..."""
        if self.adapter is not None:
            return self.adapter.type.value
        [approach] = self.given()
        return approach[0].upper() + approach[1:]

    def compares_samples(self) -> bool:
        """Whether relations between the samples of a batch are compared."""
        relation = self.distillation.relation if self.distillation else None
        return relation is not None and (relation.distance > 0 or relation.angle > 0)
