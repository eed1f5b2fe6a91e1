"""Training a soft prompt: only it and the head move, however a batch is split, and wherever the run is killed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.exit_codes import ExitCode
from finetune_trainer.loop import TrainingLoop
from trainer import processes
from trainer.processes import run_trainer
from trainer.runs import end_state, finish, make_loop, notes
from trainer.test_prompt_tuning import TYPES, prompt
from trainer.tiny import make_model, make_run


def prepared(directory: Path, model: Path, strategy: dict[str, Any], **fields: Any) -> TrainingLoop:
    return make_loop(make_run(directory, model, strategy, **fields))


@pytest.mark.parametrize("prompt_type", TYPES)
def test_the_base_stays_bit_identical(tiny_bert: Path, tmp_path: Path, prompt_type: str) -> None:
    training = {"maxSteps": 8, "weightDecay": "0.1", "learningRate": "1e-2"}
    loop = prepared(tmp_path, tiny_bert, prompt(type=prompt_type), training=training)
    before = {name: entry.parameter.detach().clone() for name, entry in loop.tuning.trained.items()}
    start = loop.model.prompt().detach().clone()
    loop.run()
    after = dict(loop.model.model.bert.named_parameters())
    stored = load_file(tiny_bert / "model.safetensors")
    assert set(after) == set(stored)
    assert all(torch.equal(after[name], tensor) for name, tensor in stored.items())
    moved = {name for name, entry in loop.tuning.trained.items() if not torch.equal(entry.parameter, before[name])}
    assert {"model.classifier.weight", "model.classifier.bias"} < moved
    assert (loop.model.prompt() - start).abs().min(0).values.max() > 0  # every token of it moved


@pytest.mark.parametrize("prompt_type", TYPES)
def test_it_learns(tiny_bert: Path, tmp_path: Path, prompt_type: str) -> None:
    """The head's rate is so low that what is learnt, the prompt learns."""
    training = {"epochs": 12, "learningRate": "3e-2", "headLearningRate": "1e-9"}
    loop = prepared(tmp_path, tiny_bert, prompt(type=prompt_type), training=training)
    state = loop.run()
    assert state.last["loss"] < 0.9 * state.before["loss"]


@pytest.mark.parametrize("prompt_type", TYPES)
def test_no_split_changes_the_gradient(still_bert: Path, tmp_path: Path, prompt_type: str) -> None:
    gradients = []
    for size in (8, 3, 1):
        loop = prepared(tmp_path / str(size), still_bert, prompt(type=prompt_type), training={"microBatchSize": size})
        loop.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign]
        loop.model.train()
        loop.train_step()
        gradients.append({name: entry.parameter.grad for name, entry in loop.tuning.trained.items()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


class TestRates:
    def groups(self, loop: TrainingLoop) -> dict[str, tuple[float, float]]:
        return {
            name: (group["peak_lr"], group["weight_decay"])
            for group in loop.optimizer.param_groups
            for name, entry in loop.tuning.trained.items()
            if any(entry.parameter is one for one in group["params"])
        }

    @pytest.mark.parametrize("prompt_type", TYPES)
    def test_a_prompt_is_never_decayed(self, tiny_bert: Path, tmp_path: Path, prompt_type: str) -> None:
        training = {"weightDecay": "0.1", "learningRate": "3e-2"}
        groups = self.groups(prepared(tmp_path, tiny_bert, prompt(type=prompt_type), training=training))
        prompts = [name for name in groups if name.startswith("prompt.")]
        assert {groups[name] for name in prompts} == {(0.03, 0.0)}
        assert groups["model.classifier.weight"] == (pytest.approx(1e-3), 0.1)
        assert {name for name in groups if name not in prompts} == {"model.classifier.weight", "model.classifier.bias"}

    def test_the_heads_own_rate(self, tiny_bert: Path, tmp_path: Path) -> None:
        training = {"learningRate": "3e-2", "headLearningRate": "5e-3"}
        assert self.groups(prepared(tmp_path, tiny_bert, prompt(), training=training))["model.classifier.weight"][
            0
        ] == pytest.approx(5e-3)


@pytest.mark.parametrize("prompt_type", TYPES)
def test_killed_and_resumed_it_ends_with_the_same_bits(tiny_bert: Path, tmp_path: Path, prompt_type: str) -> None:
    def run_in(name: str) -> Any:
        return make_run(
            tmp_path / name, tiny_bert, prompt(type=prompt_type), num_train=28,
            training={"epochs": 3, "batchSize": 8, "microBatchSize": 5, "learningRate": "1e-2"},
            checkpoint={"everySteps": 4, "keep": 2},
        )  # fmt: skip

    undisturbed, killed = run_in("undisturbed"), run_in("killed")
    events = tmp_path / "events"
    assert run_trainer(undisturbed, functools.partial(processes.count_events, events)) == ExitCode.COMPLETE
    late = functools.partial(processes.kill_at_event, int(0.6 * int(events.read_text())))
    assert run_trainer(killed, late) < 0
    assert run_trainer(killed) == ExitCode.COMPLETE
    assert any("resumed from the checkpoint" in note for note in notes(killed))
    assert end_state(killed) == end_state(undisturbed)


class TestRefused:
    def refusal(
        self, directory: Path, model: Path, strategy: dict[str, Any], make: Any = make_run, **fields: Any
    ) -> Any:
        return finish(make(directory, model, strategy, **fields))

    def test_more_labels_than_tokens(self, tiny_bert: Path, tmp_path: Path) -> None:
        strategy = prompt(initialization="Labels", numVirtualTokens=2)
        end = finish(make_run(tmp_path, tiny_bert, strategy, num_labels=3))
        assert end.exit_code == ExitCode.SPEC_INVALID
        assert "numVirtualTokens is 2, but initialization Labels needs one for each of the 3 labels" in end.message
        assert "at least 3" in end.hint

    def test_a_text_without_tokens(self, tiny_bert: Path, tmp_path: Path) -> None:
        end = finish(make_run(tmp_path, tiny_bert, prompt(initialization="Text", text="  ")))
        assert end.exit_code == ExitCode.SPEC_INVALID
        assert "spec.strategy.promptTuning.text: the model's tokenizer makes no tokens of '  '" in end.message

    def test_no_room_for_the_text(self, tiny_bert: Path, tmp_path: Path) -> None:
        for prompt_type in TYPES:
            end = finish(make_run(tmp_path / prompt_type, tiny_bert, prompt(type=prompt_type, numVirtualTokens=64)))
            assert end.exit_code == ExitCode.SPEC_INVALID
            assert "numVirtualTokens is 64, but the model takes at most 64 tokens" in end.message

    @pytest.mark.parametrize(("kind", "limit"), [("bert", 64), ("roberta", 63), ("gpt2", 64)])
    def test_text_and_prompt_together_are_too_long(self, tmp_path: Path, kind: str, limit: int) -> None:
        run = make_run(tmp_path, make_model(tmp_path / "base", kind), prompt())
        data = run.spec.data.model_copy(update={"max_length": limit - 5})
        end = finish(run.model_copy(update={"spec": run.spec.model_copy(update={"data": data})}))
        assert end.exit_code == ExitCode.SPEC_INVALID
        said = f"maxLength is {limit - 5}, but the model takes at most {limit} tokens, of which the soft prompt takes 6"
        assert said in end.message
        assert end.hint == f"use at most {limit - 6}, or a shorter prompt"

    @pytest.mark.parametrize("kind", ["deberta-v2", "mpnet"])
    def test_a_prefix_where_attention_takes_none(self, tmp_path: Path, kind: str) -> None:
        end = finish(make_run(tmp_path, make_model(tmp_path / "base", kind), prompt(type="Prefix")))
        assert end.exit_code == ExitCode.MODEL_INVALID
        assert "type Prefix is not possible in" in end.message
        assert end.hint == "use type Prompt or PTuning, or another strategy"


def test_by_default_text_gets_the_room_that_is_left(tiny_bert: Path, tmp_path: Path) -> None:
    """The model takes 64 tokens and its tokenizer 48. A prefix of an encoder takes no positions."""
    lengths = [
        prepared(tmp_path / f"{n}{kind}", tiny_bert, prompt(type=kind, numVirtualTokens=n)).task.max_length
        for n, kind in ((10, "Prompt"), (20, "Prompt"), (20, "PTuning"), (20, "Prefix"))
    ]
    assert lengths == [48, 44, 44, 48]
