"""No model keeps keys and values of what it has read: nothing ever follows on it, and they take memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.run import Run
from finetune_api.v1alpha1.strategy import PromptType
from trainer.distilling import EVERYTHING, distilling
from trainer.runs import make_loop
from trainer.tiny import FULL, LORA, make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

HOULSBY: dict[str, Any] = {"adapter": {"type": "Bottleneck", "reductionFactor": 4}}
PROMPTS = {kind: {"promptTuning": {"type": kind, "numVirtualTokens": 4}} for kind in ("Prompt", "Prefix", "PTuning")}
STRATEGIES = {"full": FULL, "LoRA": LORA, "Houlsby": HOULSBY, **PROMPTS}
CACHES = ("past_key_values", "cache_params")


def cache_of(output: Any) -> Any:
    """What a model has kept; None for nothing."""
    return next((found for name in CACHES if (found := getattr(output, name, None)) is not None), None)


def assert_keeps_nothing(run: Run) -> None:
    """And the logits, by which it is judged and trained, are those of one that does, to the bit."""
    prompt = run.spec.strategy.prompt_tuning
    is_given_one = prompt is not None and prompt.type == PromptType.PREFIX  # some kinds hand it back
    loop = make_loop(run)
    batch = loop.task.collate(loop.task.train[:2])  # too few to share a row
    for training in (False, True):
        loop.model.train(training)
        torch.manual_seed(0)
        output = loop.forward(**batch.inputs)
        torch.manual_seed(0)
        asked = loop.forward(**batch.inputs, use_cache=True)
        assert is_given_one or cache_of(output) is None
        assert cache_of(asked) is not None
        assert torch.equal(loop.task.unit_logits(output, batch), loop.task.unit_logits(asked, batch))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_while_it_learns_to_generate(tmp_path: Path, strategy: str) -> None:
    model = make_lm(tmp_path / "model")
    assert_keeps_nothing(make_lm_run(tmp_path / "run", model, STRATEGIES[strategy], make_chats(4)))


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "bloom", "opt", "mpt", "mamba"])
def test_of_any_kind(tmp_path: Path, kind: str) -> None:
    model = make_lm(tmp_path / "model", kind)
    assert_keeps_nothing(make_lm_run(tmp_path / "run", model, FULL, make_chats(4)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_while_a_decoder_learns_to_classify(tmp_path: Path, kind: str, strategy: str) -> None:
    model = make_model(tmp_path / "model", kind)
    assert_keeps_nothing(make_run(tmp_path / "run", model, STRATEGIES[strategy], num_train=4))


def test_neither_do_a_teacher_and_its_student(tmp_path: Path) -> None:
    model = make_lm(tmp_path / "model", num_hidden_layers=4)
    run = make_lm_run(tmp_path / "run", model, distilling(model, **EVERYTHING), make_chats(4))
    assert_keeps_nothing(run)
    loop = make_loop(run)
    batch = loop.task.collate(loop.task.train[:2])
    assert cache_of(loop.objective.teacher.output(batch)) is None  # type: ignore[attr-defined]
