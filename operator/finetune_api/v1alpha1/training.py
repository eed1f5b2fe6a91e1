"""How long, how fast, in what precision; how often it is judged and saved."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.v1alpha1.sources import DataSource
from finetune_api.values import Fraction, NonNegative, Positive

Steps = Annotated[int, Field(ge=1, le=10_000_000)]


class Precision(StrEnum):
    """The number format of the forward and backward pass. Trained weights are kept in float32."""

    AUTO = "Auto"
    FP32 = "FP32"
    BF16 = "BF16"


class Schedule(StrEnum):
    """How the learning rate moves after the warm-up."""

    LINEAR = "Linear"
    COSINE = "Cosine"
    CONSTANT = "Constant"


class TrainingSpec(Contract):
    """The optimisation: AdamW with decoupled weight decay (Loshchilov and Hutter 2019)."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Passes over the training rows; 3 when maxSteps is absent too."""
    max_steps: Steps | None = None
    """Train exactly this many optimizer steps instead."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Rows per optimizer step, over all devices."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Rows per forward pass of each process; fewer need less memory and change nothing else. By default all it has."""
    learning_rate: Positive | None = None
    """Peak learning rate. By default it suits the strategy: 3e-5 full, 1e-3 bottleneck, 5e-4 LoRA, 1e-2 soft prompt."""
    head_learning_rate: Positive | None = None
    """Peak rate of the task head; by default ten times learningRate up to 1e-3, not below it but for soft prompts."""
    schedule: Schedule = Schedule.LINEAR
    """Decay to zero after the warm-up, linearly or by a cosine; or none."""
    warmup_ratio: Fraction = 0.06
    """Share of all steps over which the learning rate rises from zero."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay; never on biases and norms."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    precision: Precision = Precision.AUTO
    """Auto is BF16 on a GPU that computes in it, else FP32. Elsewhere BF16 works too, but mostly slower than FP32."""
    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 42
    """Seed of every random choice: initial weights, order of rows, dropout, held-out rows."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.epochs) || !has(self.maxSteps)",
            message="give epochs or maxSteps, not both",
            holds=lambda self: self.epochs is None or self.max_steps is None,
            field=".maxSteps",
        ),
        Rule(
            cel="!has(self.microBatchSize) || self.microBatchSize <= self.batchSize",
            message="microBatchSize must not be larger than batchSize",
            holds=lambda self: self.micro_batch_size is None or self.micro_batch_size <= self.batch_size,
            field=".microBatchSize",
        ),
    )

    def num_steps(self, num_rows: int) -> int:
        """Optimizer steps in all, when trained on so many rows."""
        return self.max_steps or (self.epochs or 3) * math.ceil(num_rows / self.batch_size)


class Metric(StrEnum):
    """What a model is judged by."""

    ACCURACY = "accuracy"
    MACRO_F1 = "macroF1"
    LOSS = "loss"
    PERPLEXITY = "perplexity"
    ENTITY_F1 = "entityF1"
    EXACT_MATCH = "exactMatch"
    F1 = "f1"

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better."""
        return self not in (Metric.LOSS, Metric.PERPLEXITY)


class EarlyStopping(Contract):
    """Stop when the metric no longer improves; the best evaluated weights are the result."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Evaluations without improvement before stopping."""
    min_delta: NonNegative = 0.0
    """Patience starts anew only when the best so far is beaten by more than this; a smaller gain is kept too."""


class OnForgetting(StrEnum):
    """What follows when the result forgets more than is allowed."""

    FAIL = "Fail"
    ROLL_BACK = "RollBack"


class Retention(Contract):
    """A check that earlier abilities are kept."""

    data: DataSource
    """Rows of the earlier task, in the columns of the training data; its labels must be known to the training data."""
    max_drop: Fraction = 0.02
    """The largest accepted drop of the metric on these rows; of loss and perplexity, the largest relative rise."""
    on_forgetting: OnForgetting = OnForgetting.FAIL
    """Fail the job, or roll back to the best evaluated weights that keep within maxDrop, failing if there are none."""


class EvaluationSpec(Contract):
    """How the model is judged: always before and after training, and in between."""

    metric: Metric | None = None
    """The metric that decides; by default accuracy, perplexity, entityF1 or f1, by task."""
    every_steps: Steps | None = None
    """Evaluate every so many steps; by default after each epoch."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Rows per forward pass in evaluation; fewer need less memory and change nothing else. 64 by default, and 8 for
    TextGeneration, whose predictions are as wide as the vocabulary."""
    early_stopping: EarlyStopping | None = None
    """Stop when the metric no longer improves."""
    retention: Retention | None = None
    """A gate against forgetting."""


class CheckpointSpec(Contract):
    """When the state is saved, to resume from after an interruption."""

    every_steps: Steps = 200
    """Steps between checkpoints. One is also saved at the end and on SIGTERM."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of the newest to keep."""
