"""Evaluates a model on rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from finetune_trainer import losses
from finetune_trainer.batching import Batch, Example, by_length
from finetune_trainer.metrics import Metrics
from finetune_trainer.objective import Forward
from finetune_trainer.out_of_memory import evaluating
from finetune_trainer.stop import StopFlag
from finetune_trainer.tasks import Task
from finetune_trainer.watchdog import beat


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

    `look` is shown all unit logits [U, C], in parts. Raises TrainerError when a batch does not fit into memory.
    """
    was_training = model.training
    model.eval()
    metrics = task.new_metrics()
    try:
        with evaluating(batch_size):
            for chunk in by_length(examples, batch_size):
                if stop.is_set:
                    raise EvaluationInterrupted
                batch = task.collate(chunk).to(device)
                # In no variable of the loop: those of two batches must not lie in memory at once.
                _add(task.unit_logits(forward(**batch.inputs), batch), chunk, batch, metrics, look)
                beat()
    finally:
        model.train(was_training)
    return metrics.compute()


def _add(
    logits_UC: Tensor, examples: Sequence[Example], batch: Batch, metrics: Metrics, look: Callable[[Tensor], None]
) -> None:
    """Add a batch to the metrics; of its logits only a part is copied at a time."""
    num_classes = logits_UC.shape[-1]
    parts = (losses.in_parts(values, num_classes) for values in (logits_UC, batch.targets))
    loss_sum = 0.0
    for part_UC, targets_U in zip(*parts, strict=True):
        look(part_UC)
        loss_sum += losses.cross_entropy(part_UC, targets_U, 1.0).item()
    metrics.update(examples, batch, logits_UC, loss_sum)
