"""The training loop: step, check, evaluate, save, stop."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_trainer import device as devices
from finetune_trainer import optim
from finetune_trainer.batching import BucketSampler
from finetune_trainer.checkpoint import Checkpoint, CheckpointStore
from finetune_trainer.errors import Stopped, non_finite
from finetune_trainer.evaluation import EvaluationInterrupted, evaluate
from finetune_trainer.progress import ProgressLog
from finetune_trainer.stop import StopFlag
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task

DEFAULT_EPOCHS = 3


@dataclass(slots=True)
class RunState:
    """What a run knows besides weights: all of it is saved, so that a resumed run decides as the first would have."""

    step: int = 0
    before: dict[str, float] = field(default_factory=dict)
    """Evaluation before training."""
    last: dict[str, float] = field(default_factory=dict)
    """The newest evaluation."""
    evaluated_step: int = 0
    """The step of the newest evaluation."""
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    """Time spent by all attempts, up to the newest checkpoint."""


class TrainingLoop:
    """Trains a prepared model on a task's rows."""

    def __init__(
        self,
        spec: FineTuneJobSpec,
        task: Task,
        tuning: Tuning,
        checkpoints: CheckpointStore,
        progress: ProgressLog,
        stop: StopFlag,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.task = task
        self.tuning = tuning
        self.model = tuning.model
        self.checkpoints = checkpoints
        self.progress = progress
        self.stop = stop
        self.device = device
        self.metric = spec.metric()
        self.learning_rate = spec.training.learning_rate or tuning.default_learning_rate
        self.optimizer = optim.make_optimizer(tuning.trained, spec.training, self.learning_rate)
        self.parameters = [entry.parameter for entry in tuning.trained.values()]
        lengths = [len(example.input_ids) for example in task.train]
        self.sampler = BucketSampler(lengths, spec.training.batch_size, spec.training.seed)
        epochs = spec.training.epochs or DEFAULT_EPOCHS
        self.total_steps = spec.training.max_steps or epochs * self.sampler.batches_per_epoch
        self.evaluate_every = spec.evaluation.every_steps or self.sampler.batches_per_epoch
        self.state = RunState()
        self._saved: RunState | None = None
        self._clock = time.monotonic()

    def run(self) -> RunState:
        """Train to the end, or to the stop. Raises Stopped, or TrainerError on a non-finite loss or a full disk."""
        if not self._resume():
            torch.manual_seed(self.spec.training.seed)
        self.progress.start(self.state.step, self.total_steps)
        if not self.state.before:
            self.state.before = self.state.last = self._evaluate("before")
        self.progress.start(self.state.step, self.total_steps)  # again, so that steps alone count for the ETA
        self.model.train()
        while True:
            # A resumed run starts here too, so an evaluation or a save that was cut off is made up first.
            if self._evaluation_is_due():
                self._evaluate_and_decide()
            if self._save_is_due():
                self._save()
            if self._is_done():
                break
            if self.stop.is_set:
                self._save()
                raise Stopped(self.state.step)
            self.train_step()
        self._restore_best()
        return self.state

    def train_step(self) -> float:
        """One optimizer step; returns the loss. The update is not made when loss or gradient is not finite."""
        rows = self.sampler.next()
        examples = [self.task.train[row] for row in rows]
        num_units = self.task.num_units(examples)
        micro_batch_size = self.spec.training.micro_batch_size or len(examples)
        loss = torch.zeros((), device=self.device)
        num_tokens = 0
        for start in range(0, len(examples), micro_batch_size):
            batch = self.task.collate(examples[start : start + micro_batch_size]).to(self.device)
            with self.autocast():
                logits = self.model(**batch.inputs).logits
            # Every part is divided by the units of the whole batch, so the sum does not depend on the split.
            part = self.task.loss(logits, batch, num_units)
            part.backward()
            loss += part.detach()
            num_tokens += batch.num_tokens
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.spec.training.max_grad_norm)
        # One transfer for both; the loss is looked at before the update, so a bad one never reaches the weights.
        loss_value, norm_value = torch.stack([loss, grad_norm]).tolist()
        step = self.state.step + 1
        if not math.isfinite(loss_value):
            raise non_finite(f"the loss is {loss_value}", step)
        if not math.isfinite(norm_value):
            raise non_finite(f"the gradient's norm is {norm_value}", step)
        factor = optim.learning_rate_factor(self.state.step, self.total_steps, self.spec.training)
        optim.set_learning_rate(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step = step
        self.progress.step(
            step,
            loss=loss_value,
            learning_rate=self.learning_rate * factor,
            grad_norm=norm_value,
            epoch=self.sampler.epochs_done,
            tokens=num_tokens,
        )
        return loss_value

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return devices.autocast(self.spec.training.precision, self.device)

    def _evaluate(self, when: str) -> dict[str, float]:
        try:
            metrics = evaluate(
                self.model, self.task, self.spec.evaluation.batch_size, self.device, self.autocast, self.stop
            )
        except EvaluationInterrupted:
            # The step is saved without this evaluation; the resumed run makes it up before it goes on.
            self._save()
            raise Stopped(self.state.step) from None
        if not math.isfinite(metrics["loss"]):
            raise non_finite(f"the evaluation loss is {metrics['loss']}", self.state.step)
        self.progress.evaluation(when, self.state.step, metrics)
        return metrics

    def _evaluate_and_decide(self) -> None:
        """Evaluate; with early stopping also keep the best weights, and stop when patience is out."""
        state, stopping = self.state, self.spec.evaluation.early_stopping
        state.last = self._evaluate("after" if state.step == self.total_steps else "during")
        state.evaluated_step = state.step
        if stopping is None:
            return
        value = state.last[self.metric]
        sign = 1 if self.metric.higher_is_better else -1
        if state.best_value is None or sign * (value - state.best_value) > stopping.min_delta:
            state.best_value, state.best_step, state.evaluations_without_gain = value, state.step, 0
            self.checkpoints.save_best(state.step, self._weights())
        else:
            state.evaluations_without_gain += 1
            state.stopped_early = state.evaluations_without_gain >= stopping.patience and state.step < self.total_steps

    def _is_done(self) -> bool:
        return self.state.stopped_early or self.state.step == self.total_steps

    def _evaluation_is_due(self) -> bool:
        step = self.state.step
        at_interval = step == self.total_steps or (step > 0 and step % self.evaluate_every == 0)
        return at_interval and self.state.evaluated_step != step

    def _save_is_due(self) -> bool:
        step = self.state.step
        at_interval = self._is_done() or (step > 0 and step % self.spec.checkpoint.every_steps == 0)
        return at_interval and not self._is_saved()

    def _is_saved(self) -> bool:
        """Whether the newest checkpoint says all that is known. Then it is left alone: a new one could fail."""
        return self._saved == replace(self.state, seconds=0.0)

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: entry.parameter.detach().contiguous() for name, entry in self.tuning.trained.items()}

    def _save(self) -> None:
        if self._is_saved():
            return
        weights = self._weights()
        if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
            raise non_finite("the update made weights that are not finite", self.state.step)
        self._count_time()
        self.checkpoints.save(
            Checkpoint(
                step=self.state.step,
                weights=weights,
                optimizer=optim.optimizer_tensors(self.optimizer, self.tuning.trained),
                random=devices.random_states(self.device),
                state={**asdict(self.state), "sampler": self.sampler.state_dict()},
            )
        )
        self._saved = replace(self.state, seconds=0.0)
        self.progress.checkpoint(self.state.step)

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; False when there is none."""
        checkpoint = self.checkpoints.newest()
        if checkpoint is None:
            return False
        state = dict(checkpoint.state)
        self.sampler.load_state_dict(state.pop("sampler"))
        self.state = RunState(**state)
        self._saved = replace(self.state, seconds=0.0)
        self._load_weights(checkpoint.weights)
        optim.load_optimizer_tensors(self.optimizer, self.tuning.trained, checkpoint.optimizer)
        devices.set_random_states(checkpoint.random, self.device)
        self.progress.resumed(checkpoint.step, checkpoint.saved_at, self.state.last)
        self.progress.note(f"resumed from the checkpoint at step {checkpoint.step} of {self.total_steps}")
        return True

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, entry in self.tuning.trained.items():
            entry.parameter.copy_(weights[name])

    def _restore_best(self) -> None:
        """After early stopping was asked for, the result is the best evaluated model, not the last."""
        best = self.state.best_step
        if best is not None and best != self.state.step:
            self._load_weights(self.checkpoints.load_best(best))
            self.progress.note(
                f"the weights of step {best} are the result: best {self.metric} {self.state.best_value:.4f}"
            )
            self.state.last = self._evaluate("after")

    def _count_time(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._clock
        self._clock = now
