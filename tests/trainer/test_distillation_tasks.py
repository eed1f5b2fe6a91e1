"""Distillation of every task: tags, answers and text; and attention as it is recorded, against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.run import Run
from finetune_trainer.distillation.attention import make_recordable, recording
from finetune_trainer.distillation.cache import Answers
from finetune_trainer.distillation.objective import DistillationObjective
from finetune_trainer.distillation.teacher import Teacher
from finetune_trainer.loop import TrainingLoop
from trainer.distilling import terms_and_gradient
from trainer.extraction import asking_run, tagging_run
from trainer.runs import complete, make_loop, output, without_dropout
from trainer.tiny import FULL, NEUTRAL, make_model, write_rows
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

MakeRun = Callable[..., Run]
EVERYTHING: dict[str, Any] = {
    "response": {"temperature": "3.0"},
    "feature": {"attention": True},
    "relation": {"layers": "1", "selfAttention": "1"},
}
SPLITTABLE: dict[str, Any] = EVERYTHING | {
    "relation": {"distance": "0", "angle": "0", "layers": "1", "selfAttention": "1"}
}
ROWS = [*range(6), *range(26, 32)]  # of 24 labelled rows, and of those without labels


def writing_run(directory: Path, model: Path, strategy: dict[str, Any], num_train: int = 24, **fields: Any) -> Run:
    """A text generation job over chats."""
    return make_lm_run(directory, model, strategy, make_chats(num_train), make_chats(6, seed=5), **fields)


def unlabeled_rows(name: str) -> list[dict[str, Any]]:
    if name == "tags":
        return [{"tokens": NEUTRAL[number : number + 5]} for number in range(12)]
    if name == "answers":
        return [{"question": "good", "context": " ".join(NEUTRAL[number : number + 8])} for number in range(12)]
    return make_chats(12, seed=9)


TASKS: dict[str, MakeRun] = {"tags": tagging_run, "answers": asking_run, "text": writing_run}


class Setting:
    """A task, a base model and a teacher that has learnt a little."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        model = directory / "model"
        self.base = make_lm(model, num_hidden_layers=4) if name == "text" else make_model(model, num_hidden_layers=4)
        run = TASKS[name](directory / "teacher", self.base, FULL, num_train=24, training={"maxSteps": 12})
        complete(run)
        self.teacher = output(run)

    def run(self, directory: Path, terms: dict[str, Any], has_pool: bool = True, **fields: Any) -> Run:
        directory.mkdir(parents=True, exist_ok=True)
        if has_pool:
            write_rows(directory / "pool.jsonl", unlabeled_rows(self.name))
            fields["data"] = {"unlabeled": {"uri": "file://pool.jsonl"}}
        strategy = {"teacher": {"uri": f"file://{self.teacher}"}, "studentLayers": [0, 3], **terms}
        make = TASKS[self.name]
        return make(directory, self.base, {"distillation": strategy}, num_train=24, **fields)

    def loop(self, directory: Path, terms: dict[str, Any]) -> tuple[TrainingLoop, DistillationObjective]:
        loop = without_dropout(make_loop(self.run(directory, terms)))
        assert isinstance(loop.objective, DistillationObjective)
        return loop, loop.objective


@pytest.fixture(scope="module", params=TASKS)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.export.reload.compare", lambda *_: 0.0)
        return Setting(request.param, tmp_path_factory.mktemp(request.param))


def test_trained_exported_and_reloaded(setting: Setting, tmp_path: Path) -> None:
    """With the check of the export in a fresh process."""
    run = setting.run(tmp_path, EVERYTHING | {"taskSteps": 2}, training={"maxSteps": 6, "batchSize": 8})
    termination = complete(run)
    assert termination.result is not None
    assert termination.result.after["loss"] < termination.result.before["loss"]


def test_no_split_changes_terms_or_gradient(setting: Setting, tmp_path: Path) -> None:
    loop, _ = setting.loop(tmp_path, SPLITTABLE)
    whole, gradient = terms_and_gradient(loop, ROWS, len(ROWS))
    assert set(whole) == {"task", "response", "hidden", "attention", "layers", "selfAttention"}
    for size in (5, 1):
        terms, other = terms_and_gradient(loop, ROWS, size)
        assert terms == pytest.approx(whole, rel=1e-4)
        for name, tensor in other.items():
            assert torch.allclose(tensor, gradient[name], atol=1e-5), name


@pytest.mark.parametrize("top_k", [None, 4])
def test_kept_answers_are_those_of_the_live_teacher(setting: Setting, tmp_path: Path, top_k: int | None) -> None:
    response = {"temperature": "3.0", **({"topK": top_k} if top_k else {})}
    kept_loop, kept = setting.loop(tmp_path / "kept", {"response": response})
    live_loop, live = setting.loop(tmp_path / "live", {"response": response, "feature": {"weight": "0"}})
    # All logits of a vocabulary are too many to keep.
    assert isinstance(kept.teacher, Teacher if setting.name == "text" and top_k is None else Answers)
    assert isinstance(live.teacher, Teacher)
    found, expected = (terms_and_gradient(loop, ROWS, len(ROWS)) for loop in (kept_loop, live_loop))
    assert found[0]["response"] > 0
    for name in ("task", "response"):
        assert found[0][name] == pytest.approx(expected[0][name], rel=1e-4)
    for name, tensor in found[1].items():
        assert torch.allclose(tensor, expected[1][name], atol=1e-5), name


def test_rows_without_labels_teach(setting: Setting, tmp_path: Path) -> None:
    """They have a response, but no loss of the task."""
    loop, _ = setting.loop(tmp_path, {"response": {}})
    labelled = next(row for row in range(len(loop.task.train)) if loop.task.num_units([loop.task.train[row]]) == 0)
    terms, gradient = terms_and_gradient(loop, [labelled, labelled + 1], 2)
    assert terms["task"] == 0.0
    assert terms["response"] > 0.0
    assert any(tensor.abs().max() > 0 for tensor in gradient.values())


KINDS = ["bert", "distilbert", "roberta", "electra", "modernbert", "llama", "gpt2"]


class TestRecordedAttention:
    def model(self, directory: Path, kind: str) -> Any:
        import transformers

        path = make_model(directory, kind)
        torch.manual_seed(0)
        return transformers.AutoModel.from_pretrained(path).eval()

    @torch.no_grad()
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_model_stays_what_it_is(self, tmp_path: Path, kind: str) -> None:
        """Its states, and its distributions against transformers' own; with padding."""
        model = self.model(tmp_path, kind)
        ids = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
        usual = model(input_ids=ids, attention_mask=mask).last_hidden_state
        model.set_attn_implementation("eager")
        eager = model(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
        make_recordable(model)
        with recording(frozenset({0, 1})) as record:
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert torch.allclose(states[mask.bool()], usual[mask.bool()], atol=1e-5)
        assert record.layers.keys() == {0, 1}
        for number, layer in record.layers.items():
            valid = mask.bool()[:, None, :, None].expand_as(layer.probabilities_BHQK)
            assert torch.allclose(layer.probabilities_BHQK[valid], eager[number][valid], atol=1e-6)
            # What is allowed is what has a share.
            allowed = layer.allowed_BQK[mask.bool()]
            assert torch.equal(allowed, (layer.probabilities_BHQK.mean(1) > 0)[mask.bool()])
            assert layer.query_BHLD.shape == layer.key_BHLD.shape == layer.value_BHLD.shape

    @torch.no_grad()
    def test_distributions_are_those_before_dropout(self, tmp_path: Path) -> None:
        model = self.model(tmp_path, "bert").train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        make_recordable(model)
        with recording(frozenset({0})) as record:
            first = model(input_ids=torch.arange(5, 12)[None]).last_hidden_state
        sums = record.layers[0].probabilities_BHQK.sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums))
        assert not torch.allclose(first, model(input_ids=torch.arange(5, 12)[None]).last_hidden_state)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    def test_packed_samples_do_not_see_each_other(self, tmp_path: Path, kind: str) -> None:
        model = self.model(tmp_path, kind)
        make_recordable(model)
        positions = torch.tensor([[0, 1, 2, 0, 1]])
        with recording(frozenset({0})) as record:
            model(input_ids=torch.arange(5, 10)[None], position_ids=positions, use_cache=False)
        expected = torch.zeros(5, 5, dtype=torch.bool)
        expected[:3, :3], expected[3:, 3:] = torch.ones(3, 3).tril().bool(), torch.ones(2, 2).tril().bool()
        assert torch.equal(record.layers[0].allowed_BQK[0], expected)

    def test_nothing_is_kept_outside(self, tmp_path: Path) -> None:
        model = self.model(tmp_path, "bert")
        make_recordable(model)
        with recording(frozenset({1})) as record:
            model(input_ids=torch.arange(5, 10)[None])
        model(input_ids=torch.arange(5, 10)[None])
        assert record.num_seen == 2
        assert record.layers.keys() == {1}
