"""Every type of adapter on every task: what is trained, that it is peft's, and that the output is what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from finetune_api.exit_codes import ExitCode
from finetune_trainer.batching import Batch, Example
from trainer.adapted import FAMILY, TASKS, TYPES, adapter_run, in_memory, load, make_base, outputs
from trainer.runs import complete, finish, make_loop, output, without_dropout
from trainer.tiny import KINDS, make_model
from trainer.tiny_lm import make_lm

pytestmark = pytest.mark.usefixtures("unchecked_export")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: make_base(tmp_path_factory.mktemp(task) / "base", task) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", TYPES)
def test_the_output_is_what_was_trained(bases: dict[str, Path], tmp_path: Path, kind: str, task: str) -> None:
    run = adapter_run(tmp_path, task, bases[task], TYPES[kind])
    complete(run)
    tuned = outputs(in_memory(run), run)
    torch.testing.assert_close(outputs(load(run), run), tuned, rtol=0, atol=1e-6)
    # It did learn, so that an untouched model would not pass.
    assert (tuned - outputs(make_loop(run.model_copy(update={"work_dir": f"{tmp_path}/new"})).model, run)).any()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", FAMILY)
def test_starts_at_the_base_model(bases: dict[str, Path], tmp_path: Path, kind: str, task: str) -> None:
    plain = make_loop(adapter_run(tmp_path / "plain", task, bases[task], TYPES["lora"]))
    assert isinstance(plain.model, peft.PeftModel)
    tuned = make_loop(adapter_run(tmp_path / "tuned", task, bases[task], TYPES[kind]))
    batch = plain.task.collate(plain.task.evaluation[:4])
    with torch.no_grad(), plain.model.disable_adapter():
        expected = plain.task.unit_logits(plain.model.eval()(**batch.inputs), batch)
        # The heads are new and drawn from the same seed.
        torch.testing.assert_close(tuned.task.unit_logits(tuned.model.eval()(**batch.inputs), batch), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_a_language_models_own_weights_stay(tmp_path: Path, kind: str) -> None:
    """Its head is the embedding, so no head is trained; they are one tensor after reloading too."""
    base = make_lm(tmp_path / "base", "llama")
    run = adapter_run(tmp_path, "TextGeneration", base, TYPES[kind], training={"maxSteps": 4, "weightDecay": "0.1"})
    complete(run)
    loop = make_loop(run)
    assert not any(one.is_head for one in loop.tuning.trained.values())
    loop.run()
    frozen = {id(parameter) for parameter in loop.model.parameters()} - {
        id(one.parameter) for one in loop.tuning.trained.values()
    }
    kept = [parameter for parameter in loop.model.parameters() if id(parameter) in frozen]
    for name, tensor in load_file(base / "model.safetensors").items():
        assert any(one.shape == tensor.shape and torch.equal(one, tensor) for one in kept), name
    model = load(run)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("base_kind", ["llama", "untied", "gpt2"])
def test_an_adapted_language_model_generates(tmp_path: Path, base_kind: str) -> None:
    """The model's own `generate`, cache included, says what picking the best token each time says."""
    run = adapter_run(tmp_path, "TextGeneration", make_lm(tmp_path / "base", base_kind), TYPES["houlsby"])
    complete(run)
    model, tuned = load(run), in_memory(run).eval()
    start = torch.tensor([[5, 6, 7, 8]])
    generated = model.generate(start, max_new_tokens=8, do_sample=False, eos_token_id=None)
    expected = start
    with torch.no_grad():
        for _ in range(8):
            best = tuned(input_ids=expected).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat([expected, best], dim=1)
    assert torch.equal(generated, expected)
    assert (output(run) / "generation_config.json").exists()


def _by_hand(base: Path, kind: str) -> Any:
    """The classifier that a user of peft would make, with every module named."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2, dtype=torch.float32)
    inner = [f"bert.encoder.layer.{layer}." for layer in range(2)]
    if kind == "ia3":
        ends = ["attention.self.key", "attention.self.value", "output.dense"]
        config: Any = peft.IA3Config(
            task_type="SEQ_CLS",
            target_modules=[path + end for path in inner for end in ends],
            feedforward_modules=[f"{path}output.dense" for path in inner],
        )
    else:
        ends = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
        ends += ["intermediate.dense", "output.dense"]
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            target_modules=[path + end for path in inner for end in ends] + ["bert.pooler.dense"],
            r=2,
            lora_alpha=4,
            use_rslora=kind == "rslora",
            use_dora=kind == "dora",
        )
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("kind", FAMILY)
def test_learns_as_peft_used_by_hand_does(
    still_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Eight steps: every loss is that of peft's own model, torch's cross-entropy and torch's AdamW."""
    training = {"maxSteps": 8, "schedule": "Constant", "warmupRatio": "0.0", "learningRate": "5e-3"}
    training |= {"headLearningRate": "1e-3", "weightDecay": "0.0", "maxGradNorm": "1000.0"}
    loop = without_dropout(
        make_loop(adapter_run(tmp_path, "TextClassification", still_bert, TYPES[kind], training=training))
    )
    model = _by_hand(still_bert, kind)
    ours, theirs = (dict(one.named_parameters()) for one in (loop.model, model))
    with torch.no_grad():  # the same draws of head and A
        for name, parameter in theirs.items():
            parameter.copy_(ours[name])
    start = {name: parameter.detach().clone() for name, parameter in ours.items()}
    model.train()
    heads = [one for name, one in theirs.items() if "modules_to_save" in name]
    updates = [one for name, one in theirs.items() if one.requires_grad and "modules_to_save" not in name]
    optimizer = torch.optim.AdamW([{"params": updates, "lr": 5e-3}, {"params": heads, "lr": 1e-3}], weight_decay=0.0)
    found, expected = [], []
    batches: list[Batch] = []
    collate = loop.task.collate

    def collate_and_keep(examples: Sequence[Example]) -> Batch:
        batches.append(collate(examples))
        return batches[-1]

    monkeypatch.setattr(loop.task, "collate", collate_and_keep)
    loop.model.train()
    for _ in range(8):
        found.append(loop.train_step())
        logits = model(**batches[-1].inputs).logits
        loss = nn.functional.cross_entropy(logits, batches[-1].targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-4)
    assert all((one - theirs[name]).abs().max() < 1e-4 for name, one in ours.items())
    assert (
        min((one.detach() - start[name]).abs().max() for name, one in ours.items() if name in loop.tuning.trained) > 0
    )


class TestMerge:
    @pytest.mark.parametrize("base_kind", ["bert", "llama", "untied", "gpt2"])
    @pytest.mark.parametrize("kind", FAMILY)
    def test_a_plain_model_with_the_same_logits(self, tmp_path: Path, kind: str, base_kind: str) -> None:
        is_bert = base_kind == "bert"
        base = make_model(tmp_path / "base") if is_bert else make_lm(tmp_path / "base", base_kind)
        task = "TextClassification" if is_bert else "TextGeneration"
        run = adapter_run(
            tmp_path, task, base, TYPES[kind] | {"merge": True}, training={"maxSteps": 6, "learningRate": "1e-2"}
        )
        complete(run)
        names = {path.name for path in output(run).iterdir()}
        assert not names & {"adapter_config.json", "modeling_adapters.py"}
        tuned, merged = outputs(in_memory(run), run), load(run)
        assert type(merged).__module__.startswith("transformers.models.")
        # The bound of the export's own comparison.
        torch.testing.assert_close(outputs(merged, run), tuned, rtol=0, atol=1e-5 * max(1.0, tuned.abs().max().item()))
        stored = load_file(output(run) / "model.safetensors")
        moved = [
            name
            for name, one in load_file(base / "model.safetensors").items()
            if not any(one.shape == other.shape and torch.equal(one, other) for other in stored.values())
        ]
        assert moved
        assert all("embed" not in name and "norm" not in name.lower() for name in moved)

    def test_what_shares_its_weights_is_refused(self, tmp_path: Path) -> None:
        base = make_lm(tmp_path / "base", "llama")
        adapter = TYPES["lora"] | {"merge": True, "targetModules": ["q_proj", "lm_head"]}
        termination = finish(adapter_run(tmp_path, "TextGeneration", base, adapter))
        assert termination.exit_code == ExitCode.SPEC_INVALID
        assert "lm_head shares its weights" in termination.message


class TestIa3:
    @pytest.mark.parametrize(
        ("base_kind", "outputs_scaled", "inputs_scaled"),
        [
            ("bert", {"key", "value"}, {"output.dense"}),
            ("distilbert", {"k_lin", "v_lin"}, {"lin2"}),
            ("deberta-v2", {"key_proj", "value_proj"}, {"output.dense"}),
            ("modernbert", {"Wqkv"}, {"mlp.Wo"}),
            ("llama", {"k_proj", "v_proj"}, {"down_proj"}),
            ("gpt2", {"c_attn"}, {"mlp.c_proj"}),
        ],
    )
    def test_scales_keys_values_and_inner_activations(
        self, tmp_path: Path, base_kind: str, outputs_scaled: set[str], inputs_scaled: set[str]
    ) -> None:
        run = adapter_run(tmp_path, "TextClassification", make_model(tmp_path / "base", base_kind), TYPES["ia3"])
        model = make_loop(run).model
        layers = {path: one for path, one in model.named_modules() if isinstance(one, peft.tuners.ia3.IA3Layer)}
        assert len(layers) == 2 * (len(outputs_scaled) + len(inputs_scaled))
        for path, layer in layers.items():
            ends = inputs_scaled if layer.is_feedforward else outputs_scaled
            assert path.endswith(tuple(ends))
            assert "attention.output" not in path

    def test_its_factors_are_not_decayed(self, tiny_bert: Path, tmp_path: Path) -> None:
        loop = make_loop(adapter_run(tmp_path, "TextClassification", tiny_bert, TYPES["ia3"]))
        factors = {id(one.parameter) for name, one in loop.tuning.trained.items() if ".ia3_l." in name}
        decays = {g["weight_decay"] for g in loop.optimizer.param_groups for p in g["params"] if id(p) in factors}
        assert decays == {0.0}

    def test_the_first_deberta_is_not_said_to_be_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bottleneck has its places there; IA3 has them in the later versions alone."""
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        shape |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
        monkeypatch.setitem(KINDS, "deberta", ("DebertaModel", shape))
        base = make_model(tmp_path / "base", "deberta")
        termination = finish(adapter_run(tmp_path / "ia3", "TextClassification", base, TYPES["ia3"]))
        assert termination.exit_code == ExitCode.MODEL_INVALID
        assert "no place for IA3 is known in DebertaForSequenceClassification" in termination.message
        assert "ELECTRA, DeBERTa v2 and v3, DistilBERT" in termination.message
        make_loop(adapter_run(tmp_path / "pfeiffer", "TextClassification", base, TYPES["pfeiffer"]))

    def test_an_unknown_architecture_is_refused_until_modules_are_named(self, tmp_path: Path) -> None:
        base = make_lm(tmp_path / "base", "bloom")
        termination = finish(adapter_run(tmp_path / "default", "TextGeneration", base, TYPES["ia3"]))
        assert termination.exit_code == ExitCode.MODEL_INVALID
        assert "no place for IA3 is known in BloomForCausalLM" in termination.message
        assert "targetModules" in termination.hint
        named = TYPES["ia3"] | {"targetModules": ["query_key_value", "dense_4h_to_h"]}
        model = make_loop(adapter_run(tmp_path / "named", "TextGeneration", base, named)).model
        at_input = {
            path.rpartition(".")[2]: one.is_feedforward
            for path, one in model.named_modules()
            if isinstance(one, peft.tuners.ia3.IA3Layer)
        }
        assert at_input == {"query_key_value": False, "dense_4h_to_h": True}


def test_default_rates_follow_type_and_task(bases: dict[str, Path], tmp_path: Path) -> None:
    def rate(kind: str, task: str) -> float:
        run = adapter_run(tmp_path / f"{kind}{task}", task, bases[task], TYPES[kind])
        training = run.spec.training.model_copy(update={"learning_rate": None})
        return make_loop(
            run.model_copy(update={"spec": run.spec.model_copy(update={"training": training})})
        ).learning_rate

    found = {kind: (rate(kind, "TokenClassification"), rate(kind, "TextGeneration")) for kind in TYPES}
    assert found == {
        "houlsby": (1e-3, 3e-4),
        "pfeiffer": (1e-3, 3e-4),
        "lora": (5e-4, 2e-4),
        "rslora": (2e-4, 1e-4),
        "dora": (5e-4, 2e-4),
        "ia3": (5e-3, 5e-3),
    }
