"""A strategy trains what it says and nothing else: which parameters, how fast, and what stays bit-identical."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.strategy import AdapterType
from finetune_trainer.adapters.modeling_adapters import AdaptedLinear, BottleneckAdapter
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.optim import Trained
from finetune_trainer.strategies.adapter import LEARNING_RATES
from finetune_trainer.strategies.full import CAUSAL_LEARNING_RATE, depths
from finetune_trainer.strategies.targets import head_modules
from trainer.runs import finish, make_loop
from trainer.tiny import FULL, HOULSBY, KINDS, LORA, PFEIFFER, STRATEGIES, make_model, make_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
ADAPTED_KINDS = sorted(set(KINDS) - {"mpnet"})


def prepared(tmp_path: Path, model: Path, strategy: dict[str, Any], **fields: Any) -> TrainingLoop:
    return make_loop(make_run(tmp_path, model, strategy, **fields))


def full(**settings: Any) -> dict[str, Any]:
    return {"full": settings}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_trained_changes_and_nothing_else(tiny_bert: Path, tmp_path: Path, name: str) -> None:
    loop = prepared(tmp_path, tiny_bert, STRATEGIES[name], training={"maxSteps": 8, "weightDecay": "0.1"})
    before = snapshot(loop.model)
    loop.run()
    moved = changed(loop.model, before)
    assert moved <= set(loop.tuning.trained)
    # What no row of the data reaches (unused words, the key's bias, which softmax cancels) may stay where it is.
    assert len(moved) > 0.8 * len(loop.tuning.trained)
    assert any(loop.tuning.trained[one].is_head for one in moved)


@pytest.mark.parametrize("strategy", [HOULSBY, PFEIFFER, LORA], ids=["houlsby", "pfeiffer", "lora"])
def test_adapters_leave_the_base_bit_identical(tiny_bert: Path, tmp_path: Path, strategy: dict[str, Any]) -> None:
    """Judged by the file of the base model, whatever the parameters are called in the adapted one."""
    from safetensors.torch import load_file

    loop = prepared(tmp_path, tiny_bert, strategy)
    loop.run()
    after = [parameter for name, parameter in loop.model.named_parameters() if name not in loop.tuning.trained]
    for name, tensor in load_file(tiny_bert / "model.safetensors").items():
        assert any(one.shape == tensor.shape and torch.equal(one, tensor) for one in after), name


class TestFull:
    def test_everything_is_trained(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop = prepared(tmp_path, tiny_bert, FULL)
        assert set(loop.tuning.trained) == {name for name, _ in loop.model.named_parameters()}

    @pytest.mark.parametrize("layers", [1, 2])
    def test_frozen_layers_stay(self, tiny_bert: Path, tmp_path: Path, layers: int) -> None:
        loop = prepared(tmp_path, tiny_bert, full(frozenLayers=layers), training={"maxSteps": 4})
        before = snapshot(loop.model)
        loop.run()
        frozen = [f"bert.encoder.layer.{number}." for number in range(layers)] + ["bert.embeddings."]
        moved = changed(loop.model, before)
        assert not [name for name in moved if name.startswith(tuple(frozen))]
        assert {"classifier.weight", "bert.pooler.dense.weight"} <= moved

    def test_more_layers_than_there_are(self, tiny_bert: Path, tmp_path: Path) -> None:
        termination = finish(make_run(tmp_path, tiny_bert, full(frozenLayers=3)))
        assert termination.exit_code == ExitCode.SPEC_INVALID
        assert "frozenLayers is 3, but the model has 2 layers" in termination.message

    def test_each_layer_learns_by_its_share(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop = prepared(
            tmp_path,
            tiny_bert,
            full(layerDecay="0.5"),
            training={"learningRate": "1e-3", "headLearningRate": "4e-3", "maxSteps": 1},
        )
        rates = {
            name: group["peak_lr"]
            for group in loop.optimizer.param_groups
            for name, entry in loop.tuning.trained.items()
            if any(entry.parameter is one for one in group["params"])
        }
        assert rates["classifier.weight"] == 4e-3
        assert rates["bert.encoder.layer.1.output.dense.weight"] == 0.5e-3
        assert rates["bert.encoder.layer.0.output.dense.weight"] == 0.25e-3
        assert rates["bert.embeddings.word_embeddings.weight"] == 0.125e-3

    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_depth_of_every_architecture(self, tmp_path: Path, kind: str) -> None:
        loop = prepared(tmp_path, make_model(tmp_path / "base", kind), FULL, training={"maxSteps": 1})
        depth = depths(loop.model, frozenset(name for name, one in loop.tuning.trained.items() if one.is_head))
        assert set(depth.values()) == {0, 1, 2, 3}
        embeddings = loop.model.get_input_embeddings().weight
        assert depth[next(name for name, one in loop.model.named_parameters() if one is embeddings)] == 0


class TestBottleneck:
    @pytest.mark.parametrize("kind", ADAPTED_KINDS)
    @pytest.mark.parametrize(("strategy", "places"), [(HOULSBY, 2), (PFEIFFER, 1)], ids=["houlsby", "pfeiffer"])
    def test_one_at_each_place_of_each_layer(
        self, tmp_path: Path, kind: str, strategy: dict[str, Any], places: int
    ) -> None:
        loop = prepared(tmp_path, make_model(tmp_path / "base", kind), strategy)
        adapted = [module for module in loop.model.modules() if isinstance(module, AdaptedLinear)]
        assert len(adapted) == 2 * places
        for module in adapted:
            [adapter] = module.adapters.values()
            assert adapter.down.weight.shape == (8, 32)  # 32 wide, reduced by 4

    @pytest.mark.parametrize("kind", ADAPTED_KINDS)
    def test_starts_near_the_base_model(self, tmp_path: Path, kind: str) -> None:
        base = make_model(tmp_path / "base", kind)
        plain = prepared(tmp_path / "full", base, FULL)
        adapted = prepared(tmp_path / "adapter", base, HOULSBY)
        batch = plain.task.collate(plain.task.evaluation[:8])
        with torch.no_grad():
            # Both draw the same head from the same seed.
            one, other = (loop.model.eval()(**batch.inputs).logits for loop in (plain, adapted))
        assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()

    def test_is_the_papers_formula(self) -> None:
        torch.manual_seed(0)
        base = nn.Linear(7, 6)
        adapter = BottleneckAdapter(base, 3, dropout=0.0)
        nn.init.normal_(adapter.up.bias)
        inputs = torch.randn(4, 5, 7)
        hidden = inputs @ base.weight.T + base.bias
        inner = hidden @ adapter.down.weight.T + adapter.down.bias
        gelu = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        expected = hidden + gelu @ adapter.up.weight.T + adapter.up.bias
        torch.testing.assert_close(adapter(inputs, base, base), expected)

    def test_share_of_a_real_model(self, minilm: Path, tmp_path: Path) -> None:
        """What the papers and we promise: at most 4 % of the parameters."""
        loop = prepared(tmp_path, minilm, {"adapter": {"reductionFactor": 16}})
        trained = sum(entry.parameter.numel() for entry in loop.tuning.trained.values())
        total = sum(parameter.numel() for parameter in loop.model.parameters())
        assert 0.005 < trained / total < 0.04

    def test_an_architecture_without_known_places_is_refused(self, tmp_path: Path) -> None:
        termination = finish(make_run(tmp_path, make_model(tmp_path / "base", "mpnet"), HOULSBY))
        assert termination.exit_code == ExitCode.MODEL_INVALID
        assert "no place for bottleneck adapters is known in MPNet" in termination.message
        assert "LoRA" in termination.hint

    def test_dropout_is_the_adapters_own(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop = prepared(tmp_path, tiny_bert, {"adapter": {"reductionFactor": 4, "dropout": "0.3"}})
        rates = {one.dropout.p for one in loop.model.modules() if isinstance(one, BottleneckAdapter)}
        assert rates == {0.3}


class TestLora:
    def run_of(self, tmp_path: Path, model: Path, **settings: Any) -> Run:
        return make_run(tmp_path, model, {"adapter": {"type": "LoRA", **settings}})

    def test_starts_at_the_base_model(self, tiny_bert: Path, tmp_path: Path) -> None:
        plain, tuned = prepared(tmp_path / "full", tiny_bert, FULL), prepared(tmp_path / "lora", tiny_bert, LORA)
        batch = plain.task.collate(plain.task.evaluation[:8])
        with torch.no_grad():
            torch.testing.assert_close(
                plain.model.eval()(**batch.inputs).logits, tuned.model.eval()(**batch.inputs).logits
            )

    def test_rank_alpha_and_modules(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop = make_loop(self.run_of(tmp_path, tiny_bert, rank=3, alpha=12, targetModules=["query", "value"]))
        config = loop.model.peft_config["default"]
        assert (config.r, config.lora_alpha, config.target_modules) == (3, 12, {"query", "value"})
        updates = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in loop.tuning.trained if ".lora_" in name}
        assert updates == {"query", "value"}

    def test_alpha_is_twice_the_rank_by_default(self, tiny_bert: Path, tmp_path: Path) -> None:
        config = make_loop(self.run_of(tmp_path, tiny_bert, rank=5)).model.peft_config["default"]
        assert config.lora_alpha == 10

    def test_modules_that_are_not_there(self, tiny_bert: Path, tmp_path: Path) -> None:
        termination = finish(self.run_of(tmp_path, tiny_bert, targetModules=["q_proj", "query"]))
        assert termination.exit_code == ExitCode.SPEC_INVALID
        assert termination.message == "spec.strategy.adapter.targetModules: the model has no module q_proj"
        assert termination.hint == "its linear layers are query, key, value, dense, classifier"

    def test_modules_that_take_no_update(self, tiny_bert: Path, tmp_path: Path) -> None:
        termination = finish(self.run_of(tmp_path, tiny_bert, targetModules=["LayerNorm"]))
        assert termination.exit_code == ExitCode.SPEC_INVALID
        assert "targetModules" in termination.message

    @pytest.mark.parametrize("kind", sorted(KINDS))
    def test_the_whole_head_is_trained_in_float32(self, tmp_path: Path, kind: str) -> None:
        """Also DeBERTa's pooler, which is new and which peft would leave at random."""
        base = make_model(tmp_path / "base", kind)
        heads = prepared(tmp_path / "full", base, FULL).tuning.trained
        tuned = prepared(tmp_path / "lora", base, LORA).tuning.trained
        wanted = {name for name, one in heads.items() if one.is_head}
        found = {_plain(name) for name, one in tuned.items() if one.is_head}
        assert wanted <= found
        assert all(one.parameter.dtype == torch.float32 for one in tuned.values())

    def test_head_modules_are_the_largest_that_hold_nothing_else(self) -> None:
        model = nn.ModuleDict(
            {"body": nn.ModuleDict({"layer": nn.Linear(2, 2), "pooler": nn.Linear(2, 2)}), "head": nn.Linear(2, 2)}
        )
        head = frozenset({"body.pooler.weight", "body.pooler.bias", "head.weight", "head.bias"})
        assert head_modules(model, head) == ["body.pooler", "head"]


def _plain(name: str) -> str:
    """A parameter's name before peft put its wrappers around it."""
    return name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")


def test_default_rates_are_the_strategies_own(tiny_bert: Path, tmp_path: Path) -> None:
    rates = {}
    for name, strategy in STRATEGIES.items():
        run = make_run(tmp_path / name, tiny_bert, strategy)
        training = run.spec.training.model_copy(update={"learning_rate": None})
        rates[name] = make_loop(
            run.model_copy(update={"spec": run.spec.model_copy(update={"training": training})})
        ).learning_rate
    assert rates == {"full": 3e-5, "houlsby": 1e-3, "pfeiffer": 1e-3, "lora": 5e-4}


def test_trained_names_are_unique_and_of_parameters_that_need_gradients(tiny_bert: Path, tmp_path: Path) -> None:
    for name, strategy in STRATEGIES.items():
        loop = prepared(tmp_path / name, tiny_bert, strategy)
        entries: list[Trained] = list(loop.tuning.trained.values())
        assert len({id(entry.parameter) for entry in entries}) == len(entries)
        needing = {id(parameter) for parameter in loop.model.parameters() if parameter.requires_grad}
        assert needing == {id(entry.parameter) for entry in entries}


def test_the_rates_that_are_documented_are_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.+\| (\de-\d), (\de-\d) \|", (DOCS / "adapters.md").read_text(), re.MULTILINE)
    assert {AdapterType(kind): (float(others), float(causal)) for kind, others, causal in rows} == LEARNING_RATES
    causal = dict(
        re.findall(r"^\| (full|LoRA.*?) \| (\de-\d)", (DOCS / "text-generation.md").read_text(), re.MULTILINE)
    )
    assert float(causal.pop("full")) == CAUSAL_LEARNING_RATE
    [(kinds, rate)] = causal.items()
    assert {LEARNING_RATES[AdapterType(kind)][1] for kind in kinds.split(", ")} == {float(rate)}
