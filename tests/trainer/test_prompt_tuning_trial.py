"""A prompt is tried before it is trained: what would fail in a later step, or at the end, is refused at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.strategy import PromptTuningStrategy
from finetune_trainer.errors import TrainerError
from finetune_trainer.prompts.place import body_of
from finetune_trainer.prompts.trial import check_read, check_same, pefts_logits
from trainer.runs import complete, finish, make_loop
from trainer.test_prompt_tuning import prompt
from trainer.tiny import KINDS, make_model, make_run
from trainer.tiny_lm import make_lm, make_lm_run

STRATEGY = PromptTuningStrategy.model_validate(prompt()["promptTuning"])
TEXTS = [{"text": "the film was fresh and"}, {"text": "a dull story in the city"}] * 4
LONGFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("prompt_type", ["Prompt", "Prefix"])
def test_opt_writes_with_one(tmp_path: Path, prompt_type: str) -> None:
    """Its language model calls the decoder within its body, and not the body; its classifier calls the body."""
    base = make_lm(tmp_path / "base", "opt")
    training = {"maxSteps": 3, "learningRate": "1e-2"}
    complete(make_lm_run(tmp_path / "a", base, prompt(type=prompt_type), TEXTS, training=training))
    complete(make_run(tmp_path / "b", base, prompt(type=prompt_type), training=training))


def test_longformer_has_one_beside_its_global_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**LONGFORMER, "attention_window": 8, "max_position_embeddings": 64, "initializer_range": 0.15}
    monkeypatch.setitem(KINDS, "longformer", ("LongformerModel", settings))
    base = make_model(tmp_path / "base", "longformer")
    complete(make_run(tmp_path, base, prompt(), training={"maxSteps": 2, "learningRate": "1e-2"}))


def test_trying_changes_nothing_that_is_drawn_later(tmp_path: Path) -> None:
    """Nor whether the model trains, or its parts are hooked."""
    base = make_lm(tmp_path / "base", "gpt2", attn_pdrop=0.5)
    loop = make_loop(make_lm_run(tmp_path, base, prompt(), TEXTS))
    before = torch.get_rng_state()
    inputs = loop.task.collate(loop.task.train[:1]).inputs
    model = loop.task.load_model().model.train()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    check_read(STRATEGY, loop.model.train(), inputs)
    pefts_logits(STRATEGY, model, torch.zeros(6, 32), inputs)
    assert body_of(model, inputs)[0] == "transformer"
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert loop.model.training
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


class TestRefused:
    def refusal(self, caught: pytest.ExceptionInfo[TrainerError]) -> str:
        assert caught.value.code == ExitCode.MODEL_INVALID
        assert caught.value.hint
        return caught.value.message

    def loop(self, directory: Path) -> Any:
        return make_loop(make_lm_run(directory, make_lm(directory / "base"), prompt(), TEXTS))

    def test_a_model_that_does_not_read_it(self, tmp_path: Path) -> None:
        loop = self.loop(tmp_path)
        loop.model.model.base_model._forward_pre_hooks.clear()
        loop.model.model.base_model._forward_hooks.clear()
        with pytest.raises(TrainerError) as caught:
            check_read(STRATEGY, loop.model, loop.task.collate(loop.task.train[:1]).inputs)
        assert "is not possible in LlamaForCausalLM: what it computes does not depend on one" in self.refusal(caught)

    def test_a_model_that_fails_with_it(self, tmp_path: Path) -> None:
        loop = self.loop(tmp_path)
        loop.model.config.num_tokens_before = "one"
        with pytest.raises(TrainerError) as caught:
            check_read(STRATEGY, loop.model, loop.task.collate(loop.task.train[:1]).inputs)
        assert "is not possible in LlamaForCausalLM: it fails with one (" in self.refusal(caught)

    def test_a_prompt_that_peft_cannot_put_there(self, tmp_path: Path) -> None:
        loop = self.loop(tmp_path)
        model = loop.task.load_model().model
        with pytest.raises(TrainerError) as caught:
            pefts_logits(STRATEGY, model, torch.zeros(6, 31), loop.task.collate(loop.task.train[:1]).inputs)
        assert "peft, in whose format it is exported, cannot put one there (" in self.refusal(caught)

    def test_a_prompt_that_peft_puts_elsewhere(self, tmp_path: Path) -> None:
        model = self.loop(tmp_path).model.model
        check_same(STRATEGY, model, torch.ones(1, 3, 8), torch.ones(1, 3, 8) + 1e-7)
        with pytest.raises(TrainerError) as caught:
            check_same(STRATEGY, model, torch.ones(1, 3, 8), torch.ones(1, 3, 8) + 1e-3)
        assert "puts one elsewhere: logits differ by 1.0e-03" in self.refusal(caught)

    def test_a_prefix_without_keys_and_values(self, tmp_path: Path) -> None:
        run = make_lm_run(tmp_path, make_lm(tmp_path / "base", "mamba"), prompt(type="Prefix"), TEXTS)
        end = finish(run)
        assert end.exit_code == ExitCode.MODEL_INVALID
        assert "type Prefix is not possible in MambaForCausalLM: it takes no keys and values" in end.message
