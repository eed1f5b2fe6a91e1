"""A run in which much happens, and the end that every disturbed one of it must come to."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from trainer import processes
from trainer.processes import run_trainer
from trainer.runs import end_state, leftovers, output
from trainer.tiny import STRATEGIES, make_run

# With these each run stops early, two evaluations after its best one, in its fourth epoch or later.
RATES = {"full": "5e-3", "houlsby": "2e-3", "lora": "3e-2"}


def eventful_run(directory: Path, model: Path, name: str, **fields: Any) -> Run:
    """Dropout, buckets, epochs whose last batch is smaller, micro-batches, early stopping; saved out of step."""
    defaults: dict[str, Any] = {
        "num_train": 28,
        "training": {"epochs": 10, "batchSize": 8, "microBatchSize": 5, "learningRate": RATES[name]},
        "evaluation": {"everySteps": 3, "metric": "loss", "earlyStopping": {"patience": 2}},
        "checkpoint": {"everySteps": 4, "keep": 2},
    }
    return make_run(directory, model, STRATEGIES[name], **(defaults | fields))


class Reference:
    """A run that nothing disturbed."""

    def __init__(self, directory: Path, model: Path, name: str) -> None:
        self.name = name
        self.model = model
        self.run = eventful_run(directory / "run", model, name)
        answer = directory / "events"
        assert run_trainer(self.run, functools.partial(processes.count_events, answer)) == ExitCode.COMPLETE
        self.num_events = int(answer.read_text())
        self.end = end_state(self.run)

    def again(self, directory: Path) -> Run:
        return eventful_run(directory, self.model, self.name)

    def check(self, run: Run) -> None:
        """`run` has ended with the same bits, and with nothing left lying about."""
        end = end_state(run)
        differing = [key for key, value in self.end.items() if end[key] != value]
        assert not differing
        assert not leftovers(output(run).parent)
