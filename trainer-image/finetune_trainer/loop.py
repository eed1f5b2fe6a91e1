"""The training loop: step, check, evaluate, save, stop.

Legend of tensor shapes: U units (supervised predictions), C classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_trainer import device as devices
from finetune_trainer import optim, randomness
from finetune_trainer.batching import BucketSampler
from finetune_trainer.checkpoint import Checkpoint, CheckpointStore
from finetune_trainer.distributed import Ranks, agree_on_any, deal, first, only_first, sum_by_name
from finetune_trainer.errors import Stopped, non_finite
from finetune_trainer.evaluation import EvaluationInterrupted
from finetune_trainer.judge import Judge, RunState
from finetune_trainer.objective import Objective, TaskLoss
from finetune_trainer.progress import ProgressLog
from finetune_trainer.stop import StopFlag
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task
from finetune_trainer.watchdog import beat, doing


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
        ranks: Ranks,
    ) -> None:
        self.spec = spec
        self.task = task
        self.tuning = tuning
        self.model = tuning.model
        self.checkpoints = checkpoints
        self.progress = progress
        self.stop = stop
        self.device = device
        self.ranks = ranks
        self.objective: Objective = tuning.objective or TaskLoss(task)
        self.judge = Judge(spec, task, tuning, self.forward, checkpoints, progress, stop, device)
        self.learning_rate = spec.training.learning_rate or tuning.default_learning_rate
        self.optimizer = optim.make_optimizer(tuning.trained, spec.training, self.learning_rate)
        self.parameters = [entry.parameter for entry in tuning.trained.values()]
        self.lengths = [len(example.input_ids) for example in task.train]
        self.sampler = BucketSampler(self.lengths, spec.training.batch_size, spec.training.seed)
        self.total_steps = spec.training.num_steps(len(task.train))
        self.evaluate_every = spec.evaluation.every_steps or self.sampler.batches_per_epoch
        self.state = RunState()
        self._saved: RunState | None = None
        self._clock = time.monotonic()

    def run(self) -> RunState:
        """Train to the end, or to the stop. Raises Stopped, or TrainerError on a non-finite loss or a full disk."""
        if not self._resume():
            self.ranks.share_weights(self.parameters)
            randomness.seed(self.ranks, self.spec.training.seed)
        self.progress.start(self.state.step, self.total_steps)
        if not self.state.before:
            self._evaluate("before")
        self.progress.start(self.state.step, self.total_steps)  # again, so that steps alone count for the ETA
        self.model.train()
        while True:
            # A resumed run starts here too, so an evaluation or a save that was cut off is made up first.
            if self._evaluation_is_due():
                self._evaluate("after" if self.state.step == self.total_steps else "during")
                self._decide()
            if self._save_is_due():
                self._save()
            if self._is_done():
                break
            if agree_on_any(self.ranks, self.stop.is_set):
                self._save()
                raise Stopped(self.state.step)
            with doing(f"training at step {self.state.step + 1}"):
                self.train_step()
        self.progress.finish(self.state.step)
        if (best := self.judge.best(self.state)) is not None:
            self._load_weights(best)
            self._evaluate("after")
        self.judge.check_retention(self.state)
        return self.state

    def train_step(self) -> float:
        """One optimizer step; returns the loss. The update is not made when loss or gradient is not finite.

        Every process takes its share of the rows, and all make the same update.
        """
        if self.tuning.before_step is not None:
            self.tuning.before_step(self.state.step)
        rows = self.sampler.next()
        if self.tuning.choose_rows is not None:
            rows = self.tuning.choose_rows(self.state.step, rows)
        examples = [self.task.train[row] for row in rows]
        own = deal(self.ranks, rows, self.lengths)
        size = self.spec.training.micro_batch_size or max(1, len(own))
        sums: dict[str, torch.Tensor] = {}
        for start in range(0, len(own), size):
            part = own[start : start + size]
            batch = self.task.collate([self.task.train[row] for row in part]).to(self.device)
            # Every part is divided by the units of the whole batch, so the sum does not depend on the split.
            _backward(self.objective.terms(self.forward, batch, part, examples, self.state.step), sums)
            beat()
        if self.tuning.penalty is not None and self.ranks.rank == 0:
            penalty = self.tuning.penalty()
            if penalty.requires_grad:
                _backward({"penalty": penalty}, sums)
            else:
                sums["penalty"] = penalty
        self.ranks.sum_gradients(self.parameters)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.spec.training.max_grad_norm)
        # One transfer for all; the loss is looked at before the update, so a bad one never reaches the weights.
        *own_values, norm_value = torch.stack([*sums.values(), grad_norm]).tolist()
        values = sum_by_name(self.ranks, dict(zip(sums, own_values, strict=True)))
        step = self.state.step + 1
        for name, value in values.items():
            if not math.isfinite(value):
                raise non_finite(f"the loss is {value}" + (f" ({name})" if len(values) > 1 else ""), step)
        if not math.isfinite(norm_value):
            raise non_finite(f"the gradient's norm is {norm_value}", step)
        factor = optim.learning_rate_factor(self.state.step, self.total_steps, self.spec.training)
        optim.set_learning_rate(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step = step
        self.progress.step(
            step,
            loss=sum(values.values()),
            terms=values if len(values) > 1 else {},
            learning_rate=self.learning_rate * factor,
            grad_norm=norm_value,
            epoch=self.sampler.epochs_done,
            tokens=sum(self.lengths[row] for row in rows),
            device=self.device,
        )
        return sum(values.values())

    def forward(self, **inputs: Any) -> Any:
        """The model's output for a batch's inputs, in the run's precision."""
        with self.autocast():
            return self.model(**inputs)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return devices.autocast(self.spec.training.precision, self.device)

    def _evaluate(self, when: str) -> None:
        """Evaluate in the first process: all decide by the same figures."""

        def evaluate() -> dict[str, Any] | None:
            try:
                if when == "before":
                    self.judge.evaluate_base(self.state)
                else:
                    self.judge.evaluate(when, self.state)
            except EvaluationInterrupted:
                return None
            return asdict(replace(self.state, evaluated_step=self.state.step))

        with doing(f"evaluating at step {self.state.step}"):
            found = first(self.ranks, evaluate, self.stop)
        if found is None:
            # The step is saved without this evaluation; the resumed run makes it up before it goes on.
            self._save()
            raise Stopped(self.state.step)
        self.state = RunState(**found)

    def _decide(self) -> None:
        def decide() -> dict[str, Any]:
            self.judge.decide(self.state, self._weights, is_last=self.state.step == self.total_steps)
            return asdict(self.state)

        with doing(f"judging step {self.state.step}"):
            self.state = RunState(**first(self.ranks, decide, self.stop))

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
        if not self._is_saved():
            with doing(f"saving the checkpoint at step {self.state.step}"):
                self._write()

    def _write(self) -> None:
        weights = self._weights()
        if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
            raise non_finite("the update made weights that are not finite", self.state.step)
        self._count_time()
        checkpoint = Checkpoint(
            step=self.state.step,
            weights=weights,
            optimizer=optim.optimizer_tensors(self.optimizer, self.tuning.trained),
            random=randomness.states(self.ranks, self.device),
            state={**asdict(self.state), "sampler": self.sampler.state_dict()},
        )
        only_first(self.ranks, lambda: self.checkpoints.save(checkpoint), self.stop)
        self._saved = replace(self.state, seconds=0.0)
        self.progress.checkpoint(self.state.step)

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; False when there is none."""
        step = first(self.ranks, self.checkpoints.newest_step, self.stop)
        if step is None:
            return False
        checkpoint = self.ranks.attend(lambda: self.checkpoints.load(step), self.stop)
        state = dict(checkpoint.state)
        self.sampler.load_state_dict(state.pop("sampler"))
        self.state = RunState(**state)
        self._saved = replace(self.state, seconds=0.0)
        self._load_weights(checkpoint.weights)
        optim.load_optimizer_tensors(self.optimizer, self.tuning.trained, checkpoint.optimizer)
        seed = self.spec.training.seed
        if not randomness.restore(self.ranks, self.device, checkpoint.random, seed, step):
            self.progress.note(
                "the checkpoint is of another number of processes: from here on dropout draws differently"
            )
        self.progress.resumed(checkpoint.step, checkpoint.saved_at, self.state.last)
        self.progress.note(f"resumed from the checkpoint at step {checkpoint.step} of {self.total_steps}")
        return True

    @torch.no_grad()
    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        for name, entry in self.tuning.trained.items():
            entry.parameter.copy_(weights[name])

    def _count_time(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self._clock
        self._clock = now


def _backward(terms: Mapping[str, torch.Tensor], sums: dict[str, torch.Tensor]) -> None:
    """Add the gradient of terms to the parameters', and their values to sums."""
    torch.stack([*terms.values()]).sum().backward()
    for name, term in terms.items():
        sums[name] = sums[name] + term.detach() if name in sums else term.detach()
