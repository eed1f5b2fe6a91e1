"""Teachers and students for the tests of distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from finetune_api.run import Run
from finetune_trainer.loop import TrainingLoop
from trainer.runs import complete, output
from trainer.tiny import FULL, make_rows, make_run, write_rows

RESPONSE: dict[str, Any] = {"response": {}}
EVERYTHING: dict[str, Any] = {
    "response": {},
    "feature": {"attention": True},
    "relation": {"layers": "1", "selfAttention": "1"},
}


def make_teacher(directory: Path, model: Path, **fields: Any) -> Path:
    """A model that has learnt the task of the tiny rows."""
    training = {"epochs": 8, "batchSize": 16, "learningRate": "2e-3"}
    run = make_run(directory, model, FULL, **({"num_train": 240, "training": training} | fields))
    complete(run)
    return output(run)


def distilling(teacher: Path, **fields: Any) -> dict[str, Any]:
    """The strategy: a student of the first and the last of four layers."""
    return {"distillation": {"teacher": {"uri": f"file://{teacher}"}, "studentLayers": [0, 3], **fields}}


def with_pool(directory: Path, count: int, **settings: Any) -> dict[str, Any]:
    """The data of a tiny run with so many rows that have no labels."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "pool.jsonl", [{"text": row["text"]} for row in make_rows(count, seed=7)])
    return {
        "train": {"uri": "file://train.jsonl"},
        "evaluation": {"uri": "file://evaluation.jsonl"},
        "unlabeled": {"uri": "file://pool.jsonl"},
        **settings,
    }


def student_run(directory: Path, model: Path, teacher: Path, terms: dict[str, Any] = RESPONSE, **fields: Any) -> Run:
    """A run that distils."""
    return make_run(directory, model, distilling(teacher, **terms), **fields)


def terms_and_gradient(
    loop: TrainingLoop, rows: list[int], size: int
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Of one step over these rows, so many at a time."""
    loop.model.train()
    sums: dict[str, float] = {}
    examples = [loop.task.train[row] for row in rows]
    for start in range(0, len(rows), size):
        batch = loop.task.collate(examples[start : start + size])
        found = loop.objective.terms(loop.forward, batch, rows[start : start + size], examples, 0)
        torch.stack(list(found.values())).sum().backward()
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    trained = {name: entry.parameter for name, entry in loop.tuning.trained.items()}
    gradient = {name: one.grad.clone() for name, one in trained.items() if one.grad is not None}
    loop.model.zero_grad()
    for parameter in trained.values():
        parameter.grad = None
    return sums, gradient
