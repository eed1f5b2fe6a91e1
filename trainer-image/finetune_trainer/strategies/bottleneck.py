"""Bottleneck adapters: small layers and the task's head are trained, the model itself is untouched."""

from __future__ import annotations

from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.strategy import AdapterStrategy, Placement
from finetune_trainer.adapters.modeling_bottleneck import (
    AdaptedForSequenceClassification,
    BottleneckConfig,
    UnknownArchitecture,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded
from finetune_trainer.optim import Trained
from finetune_trainer.strategies import Tuning

DEFAULT_LEARNING_RATE = 1e-3
DEFAULT_REDUCTION_FACTOR = 16
ADAPTER_NAME = "default"


def prepare_bottleneck(strategy: AdapterStrategy, loaded: Loaded) -> Tuning:
    """Put adapters into a model and train them with its head."""
    config = BottleneckConfig.for_base(
        loaded.model,
        placement=strategy.placement or Placement.HOULSBY,
        reduction_factor=strategy.reduction_factor or DEFAULT_REDUCTION_FACTOR,
        dropout=strategy.dropout,
        adapters=[ADAPTER_NAME],
    )
    loaded.model.requires_grad_(False)
    # By identity, because the names of layers change when adapters are put around them.
    head = {id(parameter) for name, parameter in loaded.model.named_parameters() if name in loaded.head}
    try:
        model = AdaptedForSequenceClassification.wrap(loaded.model, config)
    except UnknownArchitecture as error:
        raise TrainerError(
            ExitCode.MODEL_INVALID, f"spec.strategy.adapter: {error}", "use type LoRA, or a model of a listed kind"
        ) from None
    trained = {}
    for name, parameter in model.named_parameters():
        is_head = id(parameter) in head
        if is_head or ".adapters." in name:
            parameter.requires_grad_(True)
            trained[name] = Trained(parameter, is_head=is_head)

    def save(directory: Path) -> None:
        model.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)

    return Tuning(model, trained, DEFAULT_LEARNING_RATE, save, "transformers-remote-code")
