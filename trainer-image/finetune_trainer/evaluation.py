"""Evaluates a model on the evaluation rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from finetune_trainer.batching import by_length
from finetune_trainer.stop import StopFlag
from finetune_trainer.tasks import Task


class EvaluationInterrupted(Exception):
    """The run was asked to stop while evaluating."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: StopFlag,
) -> dict[str, float]:
    """The task's metrics over all evaluation rows, whatever the batch size. Draws no random numbers."""
    was_training = model.training
    model.eval()
    metrics = task.new_metrics()
    try:
        for examples in by_length(task.evaluation, batch_size):
            if stop.is_set:
                raise EvaluationInterrupted
            batch = task.collate(examples).to(device)
            with autocast():
                logits = model(**batch.inputs).logits
            metrics.update(logits, batch.targets, task.loss(logits, batch, 1.0).item())
    finally:
        model.train(was_training)
    return metrics.compute()
