"""A training step asks a GPU for nothing before all is queued: each answer would let it stand idle meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_api.run import Run
from finetune_trainer import batching
from trainer.distilling import distilling
from trainer.extraction import asking_run, tagging_run
from trainer.runs import complete, make_loop, output
from trainer.tiny import FULL, make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

# What the host cannot go on without: a number, or how large the result is.
ANSWERS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal", "_unique2"}
EVERYTHING: dict[str, Any] = {
    "response": {"divergence": "JensenShannon"},
    "feature": {"attention": True},
    "relation": {"distance": "1", "angle": "1", "layers": "1", "selfAttention": "1"},
    "taskWeight": "0.5",
}


class Waits(TorchDispatchMode):
    """Notes where our code would wait for a GPU; transformers' own checks of its masks are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name in ANSWERS or (name.startswith(("index", "_index_put")) and _has_mask(args)):
            frame = sys._getframe(1)
            while "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back  # type: ignore[assignment]
            path = frame.f_code.co_filename
            is_on_cpu = frame.f_code is batching.places.__code__
            if ("finetune_trainer" in path or path == __file__) and not is_on_cpu:
                self.found.append(f"{name} at {path}:{frame.f_lineno}")
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    return any(one is not None and one.dtype == torch.bool for part in args if isinstance(part, list) for one in part)


def waits_of_a_step(run: Run) -> list[str]:
    """From the batch to its gradients; the batch itself is made on the CPU."""
    loop = make_loop(run)
    rows = [0, 1, 2, 3]
    examples = [loop.task.train[row] for row in rows]
    batch = loop.task.collate(examples)
    loop.model.train()
    with Waits() as waits:
        terms = loop.objective.terms(loop.forward, batch, rows, examples, 0)
        torch.stack([*terms.values()]).sum().backward()
    return waits.found


def test_what_a_wait_is() -> None:
    values = torch.ones(3)
    with Waits() as waits:
        values[values > 0], values[torch.tensor([1])], values.sum().item()
    assert [one.partition(" ")[0] for one in waits.found] == ["index", "_local_scalar_dense"]


@pytest.mark.parametrize("make", [make_run, tagging_run, asking_run])
def test_of_an_encoder(tiny_bert: Path, tmp_path: Path, make: Any) -> None:
    assert waits_of_a_step(make(tmp_path, tiny_bert, FULL, num_train=8)) == []


def test_of_a_language_model(tmp_path: Path) -> None:
    """Without a prompt transformers itself chooses the learnt tokens, and takes nothing but a mask for it."""
    strategy = {"promptTuning": {"type": "Prompt", "numVirtualTokens": 4}}
    run = make_lm_run(tmp_path / "run", make_lm(tmp_path / "model"), strategy, make_chats(8))
    assert waits_of_a_step(run) == []


@pytest.mark.usefixtures("unchecked_export")
def test_of_a_student(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", num_hidden_layers=4)
    taught = make_run(tmp_path / "teacher", base, FULL, num_train=8, training={"maxSteps": 1})
    complete(taught)
    run = make_run(tmp_path / "run", base, distilling(output(taught), **EVERYTHING), num_train=8)
    assert waits_of_a_step(run) == []
