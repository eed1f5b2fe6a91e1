"""What a strategy is chosen by. Plain numbers; nothing here looks at a model or a machine."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.v1alpha1.job import Task


@dataclass(frozen=True, slots=True)
class Load:
    """The largest batch that passes through the model at once."""

    rows: int
    tokens: int
    """Of its longest row."""
    units: int
    """Predictions of the row that has most."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model with the task's head."""

    kind: str
    """Its class in transformers."""
    parameters: int
    layers: int
    hidden_size: int
    heads: int
    outputs: int
    """Classes of a prediction: the labels, or the vocabulary."""
    bottleneck_parameters: int | None
    """Size of bottleneck adapters by their defaults; None where no place for them is known."""
    lora_parameters: int | None
    """Size of LoRA by its defaults; None where there is no linear layer."""


@dataclass(frozen=True, slots=True)
class Device:
    """What the job trains on."""

    memory: int | None
    """Bytes that are there for training; None where nothing tells."""
    activation_bytes: int
    """Bytes of a number in the forward pass: 4, or 2 under autocast."""
    keeps_attention: bool
    """Whether the attention weights of every pair of tokens are kept for the backward pass."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a choice rests on."""

    task: Task
    rows: int
    """Training rows."""
    units: int
    """Supervised predictions in them: labels, tags, answers' ends, learnt tokens."""
    has_retention: bool
    """Whether earlier rows are evaluated too, to see what is forgotten."""
    model: ModelFacts
    training: Load
    evaluation: Load
    device: Device
