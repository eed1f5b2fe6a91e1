"""Judges a model during its run: evaluates it, keeps the best weights, stops early, gates what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from finetune_api.exit_codes import ExitCode
from finetune_api.measures import DIVERGENCE, on_retention
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.v1alpha1.training import OnForgetting
from finetune_trainer import forgetting
from finetune_trainer.checkpoint import CheckpointStore
from finetune_trainer.errors import TrainerError, non_finite
from finetune_trainer.evaluation import evaluate
from finetune_trainer.objective import Forward
from finetune_trainer.progress import ProgressLog
from finetune_trainer.stop import StopFlag
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task


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


class Judge:
    """The evaluations of one run, and what follows from them."""

    def __init__(
        self,
        spec: FineTuneJobSpec,
        task: Task,
        tuning: Tuning,
        forward: Forward,
        checkpoints: CheckpointStore,
        progress: ProgressLog,
        stop: StopFlag,
        device: torch.device,
    ) -> None:
        self.metric = spec.metric()
        self._spec = spec.evaluation
        self._batch_size = spec.evaluation_batch_size()
        self._task = task
        self._tuning = tuning
        self._forward = forward
        self._checkpoints = checkpoints
        self._progress = progress
        self._stop = stop
        self._device = device
        self._base: forgetting.BasePredictions | None = None

    def evaluate_base(self, state: RunState) -> None:
        """Evaluate before training, and remember what the model says then. Raises EvaluationInterrupted."""
        base = forgetting.BasePredictions()
        state.before = state.last = _finite(self._measure(base.record), state.step)
        self._checkpoints.save_base(base.tensors())
        self._base = base
        self._progress.evaluation("before", state.step, state.last, None)

    def evaluate(self, when: str, state: RunState) -> None:
        """Evaluate during or after training. Raises EvaluationInterrupted."""
        if self._base is None and (saved := self._checkpoints.load_base()) is not None:
            self._base = forgetting.BasePredictions.from_tensors(saved)
        comparison = self._base.comparison() if self._base is not None else None
        found = self._measure(comparison.look if comparison else _look_away)
        if comparison is not None:
            found[DIVERGENCE] = comparison.mean()
        state.last = _finite(found, state.step)
        self._progress.evaluation(when, state.step, state.last, self.forgotten(state))

    def decide(self, state: RunState, weights: Callable[[], dict[str, Tensor]], is_last: bool) -> None:
        """Keep the weights when they are the best so far; stop when patience is out.

        Not before the stage of training whose weights may be the result; nor is patience tried before all is trained.
        Any gain over the best is kept, and one of minDelta starts patience anew: slow ones add up to a better model,
        but do not let a run go on.
        """
        stopping, retention = self._spec.early_stopping, self._spec.retention
        rolls_back = retention is not None and retention.on_forgetting == OnForgetting.ROLL_BACK
        if (stopping is None and not rolls_back) or state.step <= self._tuning.result_after:
            return
        gain = 0.0 if self._forgets(state) else self._gain(state)
        if gain > 0:
            state.best_value, state.best_step = state.last[self.metric], state.step
            self._checkpoints.save_best(state.step, weights())
        if stopping is None or gain > stopping.min_delta:
            state.evaluations_without_gain = 0
        elif state.step > self._tuning.patience_after:
            state.evaluations_without_gain += 1
            state.stopped_early = not is_last and state.evaluations_without_gain >= stopping.patience

    def _gain(self, state: RunState) -> float:
        """By how much the newest evaluation is better than the best that was kept; infinite where none was."""
        if state.best_value is None:
            return math.inf
        change = state.last[self.metric] - state.best_value
        return change if self.metric.higher_is_better else -change

    def best(self, state: RunState) -> dict[str, Tensor] | None:
        """The weights that are the result, unless those are the last.

        With early stopping the best evaluated are; with the gate, if the last forget too much, the best that do not.
        """
        step = state.best_step
        if step is None or step == state.step or not (self._spec.early_stopping or self._forgets(state)):
            return None
        self._progress.note(f"the weights of step {step} are the result: best {self.metric} {state.best_value:.4f}")
        return self._checkpoints.load_best(step)

    def check_retention(self, state: RunState) -> None:
        """Raise TrainerError when the result forgets more than is allowed."""
        retention = self._spec.retention
        if retention is None or not self._forgets(state):
            return
        name = on_retention(self.metric)
        raise TrainerError(
            ExitCode.FORGETTING,
            f"{self.metric} on the retention rows went from {state.before[name]:.4f} to {state.last[name]:.4f}; "
            f"evaluation.retention.maxDrop allows {retention.max_drop:g}",
            "use adapters, data.replay, l2ToStart, a lower learning rate or fewer steps; or evaluate more often with "
            "onForgetting RollBack",
        )

    def forgotten(self, state: RunState) -> float | None:
        """How much worse the deciding metric has become on the retention rows; None without any."""
        if self._spec.retention is None:
            return None
        name = on_retention(self.metric)
        return forgetting.drop(self.metric, state.before[name], state.last[name])

    def _forgets(self, state: RunState) -> bool:
        forgotten, retention = self.forgotten(state), self._spec.retention
        return forgotten is not None and retention is not None and forgotten > retention.max_drop

    def _measure(self, look: Callable[[Tensor], None]) -> dict[str, float]:
        """The metrics on the evaluation rows, and on the retention rows under names of their own."""
        size = self._batch_size
        arguments = (self._tuning.model, self._forward, self._task)
        metrics = evaluate(*arguments, self._task.evaluation, size, self._device, self._stop, look)
        if self._task.retention:
            kept = evaluate(*arguments, self._task.retention, size, self._device, self._stop)
            metrics |= {on_retention(name): value for name, value in kept.items()}
        return metrics


def _finite(metrics: dict[str, float], step: int) -> dict[str, float]:
    """The metrics, if all of them are numbers that can be compared. Raises TrainerError."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise non_finite(f"the evaluation {name} is {value}", step)
    return metrics


def _look_away(logits_UC: Tensor) -> None:
    """Nothing is compared."""
