"""Evaluates a model on rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from finetune_trainer import losses
from finetune_trainer.batching import Example, by_length
from finetune_trainer.objective import Forward
from finetune_trainer.stop import StopFlag
from finetune_trainer.tasks import Task


class EvaluationInterrupted(Exception):
    """The run was asked to stop while evaluating."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    forward: Forward,
    task: Task,
    examples: Sequence[Example],
    batch_size: int,
    device: torch.device,
    stop: StopFlag,
    look: Callable[[Tensor], None] = lambda logits_UC: None,
) -> dict[str, float]:
    """The task's metrics over all the examples, whatever the batch size. Draws no random numbers.

    `look` is shown every batch's unit logits [U, C].
    """
    was_training = model.training
    model.eval()
    metrics = task.new_metrics()
    try:
        for chunk in by_length(examples, batch_size):
            if stop.is_set:
                raise EvaluationInterrupted
            batch = task.collate(chunk).to(device)
            logits_UC = task.unit_logits(forward(**batch.inputs), batch)
            look(logits_UC)
            metrics.update(chunk, batch, logits_UC, losses.cross_entropy(logits_UC, batch.targets, 1.0).item())
    finally:
        model.train(was_training)
    return metrics.compute()
