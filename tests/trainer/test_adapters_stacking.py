"""A new adapter on earlier ones: they stay frozen, and each still gives the very bits that its own output gives."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.adapters.modeling_adapters import AdaptedLinear, BottleneckAdapter, LowRankAdapter, ScalingAdapter
from finetune_trainer.storage import MANIFEST
from trainer import processes
from trainer.adapted import TYPES, adapter_run, in_memory, load, outputs
from trainer.loading_lines import lines_of, loaded_by_a_user
from trainer.runs import checkpoints, complete, end_state, finish, make_loop, notes, output
from trainer.tiny import make_model
from trainer.tiny_lm import make_lm

CLASSIFY, TAG, ANSWER, WRITE = "TextClassification", "TokenClassification", "QuestionAnswering", "TextGeneration"


class Firsts:
    """Outputs of first jobs, each made once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bases = {"encoder": make_model(directory / "encoder"), "llama": make_lm(directory / "llama", "llama")}
        self.bases["untied"] = make_lm(directory / "untied", "untied")

    @functools.cache  # noqa: B019 (as long as the module's tests)
    def run(self, task: str, kind: str, base: str = "encoder", name: str = "first") -> Run:
        run = adapter_run(self.directory / f"{task}-{kind}-{base}-{name}", task, self.bases[base], TYPES[kind], name)
        complete(run)
        return run


@pytest.fixture(scope="module")
def firsts(tmp_path_factory: pytest.TempPathFactory) -> Firsts:
    return Firsts(tmp_path_factory.mktemp("firsts"))


def stacked(directory: Path, task: str, kind: str, base: Path, *below: Run, name: str = "second", **fields: Any) -> Run:
    fields = ({"num_labels": 3} if task == CLASSIFY else {}) | fields
    return adapter_run(directory, task, base, TYPES[kind], name, [output(one) for one in below], **fields)


def check_earlier(run: Run, *earlier: tuple[str, Run]) -> Any:
    """Each earlier adapter, active in the stack's output, gives the bits of its own output; returns the stack."""
    stack = load(run)
    newest = outputs(stack, run)
    for name, one in earlier:
        stack.set_active(name)
        own = load(one)
        assert torch.equal(outputs(stack, run), outputs(own, one)), name
        assert stack.config.id2label == own.config.id2label
    stack.set_active(run.name)
    assert torch.equal(outputs(stack, run), newest)
    torch.testing.assert_close(newest, outputs(in_memory(run), run), rtol=0, atol=1e-6)
    return stack


PAIRS = [(new, "houlsby") for new in TYPES] + [("houlsby", "lora"), ("houlsby", "rslora"), ("pfeiffer", "dora")]
PAIRS += [("lora", "ia3"), ("dora", "lora"), ("ia3", "lora"), ("lora", "lora"), ("dora", "dora"), ("ia3", "ia3")]


@pytest.mark.usefixtures("unchecked_export")
class TestBits:
    @pytest.mark.parametrize(("new", "first"), PAIRS)
    def test_of_a_classifier_below_a_classifier(self, firsts: Firsts, tmp_path: Path, new: str, first: str) -> None:
        below = firsts.run(CLASSIFY, first)
        run = stacked(tmp_path, CLASSIFY, new, firsts.bases["encoder"], below)
        complete(run)
        stack = check_earlier(run, ("first", below))
        assert stack.adapter_names == ["first", "second"]

    @pytest.mark.parametrize(("new", "first"), [("houlsby", "houlsby"), ("lora", "lora"), ("houlsby", "dora")])
    @pytest.mark.parametrize("task", [TAG, ANSWER])
    def test_of_a_tagger_and_of_a_finder_of_answers(
        self, firsts: Firsts, tmp_path: Path, task: str, new: str, first: str
    ) -> None:
        below = firsts.run(task, first)
        run = stacked(tmp_path, task, new, firsts.bases["encoder"], below)
        complete(run)
        check_earlier(run, ("first", below))

    @pytest.mark.parametrize(("new", "first"), [("houlsby", "houlsby"), ("lora", "lora"), ("ia3", "dora")])
    @pytest.mark.parametrize("base", ["llama", "untied"])
    def test_of_a_language_model(self, firsts: Firsts, tmp_path: Path, base: str, new: str, first: str) -> None:
        below = firsts.run(WRITE, first, base)
        run = stacked(tmp_path, WRITE, new, firsts.bases[base], below)
        complete(run)
        stack = check_earlier(run, ("first", below))
        stack.set_active("first")
        start = torch.tensor([[5, 6, 7, 8]])
        written = [one.generate(start, max_new_tokens=6, do_sample=False) for one in (stack, load(below))]
        assert torch.equal(*written)

    @pytest.mark.parametrize(
        ("below_task", "task"), [(CLASSIFY, TAG), (CLASSIFY, ANSWER), (TAG, CLASSIFY), (ANSWER, TAG)]
    )
    @pytest.mark.parametrize(("new", "first"), [("houlsby", "lora"), ("lora", "houlsby")])
    def test_of_another_task(
        self, firsts: Firsts, tmp_path: Path, below_task: str, task: str, new: str, first: str
    ) -> None:
        """BERT's classifier has a pooler that its tagger lacks, with a LoRA update in it."""
        below = firsts.run(below_task, first)
        run = stacked(tmp_path, task, new, firsts.bases["encoder"], below)
        complete(run)
        check_earlier(run, ("first", below))

    @pytest.mark.parametrize("base", ["llama", "untied"])
    def test_of_a_language_model_below_a_classifier(self, firsts: Firsts, tmp_path: Path, base: str) -> None:
        below = firsts.run(WRITE, "lora", base)
        run = stacked(tmp_path, CLASSIFY, "houlsby", firsts.bases[base], below)
        complete(run)
        check_earlier(run, ("first", below))

    @pytest.mark.parametrize("first", ["houlsby", "lora"])
    def test_of_a_body_without_a_pooler_which_each_job_learns(self, tmp_path: Path, first: str) -> None:
        base = make_model(tmp_path / "base", with_pooler=False)
        below = adapter_run(tmp_path / "first", CLASSIFY, base, TYPES[first], "first")
        complete(below)
        run = stacked(tmp_path / "second", CLASSIFY, "houlsby", base, below)
        complete(run)
        stack = check_earlier(run, ("first", below))
        heads = [one for name, one in stack.named_parameters() if "pooler" in name and name.endswith("weight")]
        assert len(heads) == 2
        assert not torch.equal(*heads)

    @pytest.mark.parametrize("base_kind", ["distilbert", "deberta-v2", "modernbert", "llama", "gpt2"])
    def test_in_other_architectures(self, tmp_path: Path, base_kind: str) -> None:
        base = make_model(tmp_path / "base", base_kind)
        below = adapter_run(tmp_path / "first", CLASSIFY, base, TYPES["dora"], "first")
        complete(below)
        run = stacked(tmp_path / "second", CLASSIFY, "houlsby", base, below)
        complete(run)
        check_earlier(run, ("first", below))

    @pytest.mark.parametrize("first", ["houlsby", "lora"])
    def test_of_three_and_of_two_side_by_side(self, firsts: Firsts, tmp_path: Path, first: str) -> None:
        one, other = firsts.run(CLASSIFY, first), firsts.run(CLASSIFY, "dora", name="other")
        base = firsts.bases["encoder"]
        second = stacked(tmp_path / "second", CLASSIFY, "lora", base, one)
        complete(second)
        # The second's output holds the first too: it is there once, however often it is named.
        third = stacked(tmp_path / "third", CLASSIFY, "houlsby", base, one, second, other, name="third")
        complete(third)
        stack = check_earlier(third, ("first", one), ("second", second), ("other", other))
        assert stack.adapter_names == ["first", "second", "other", "third"]
        assert [entry["below"] for entry in stack.config.adapters] == [[], ["first"], [], ["first", "second", "other"]]

    @pytest.mark.parametrize("task", [CLASSIFY, WRITE])
    def test_of_what_peft_wrote_without_us(self, firsts: Firsts, tmp_path: Path, task: str) -> None:
        base = firsts.bases["llama" if task == WRITE else "encoder"]
        auto_class = AutoModelForCausalLM if task == WRITE else AutoModelForSequenceClassification
        labels = {} if task == WRITE else {"num_labels": 4}
        config = peft.LoraConfig(task_type="CAUSAL_LM" if task == WRITE else "SEQ_CLS", target_modules="all-linear")
        theirs = peft.get_peft_model(auto_class.from_pretrained(base, **labels), config)
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        theirs.save_pretrained(tmp_path / "theirs")
        run = adapter_run(tmp_path / "run", task, base, TYPES["houlsby"], stack_on=[tmp_path / "theirs"])
        complete(run)
        stack = load(run)
        assert stack.adapter_names == ["theirs", "tiny"]
        stack.set_active("theirs")
        assert torch.equal(outputs(stack, run), outputs(theirs, run))

    def test_two_jobs_of_one_name_are_told_apart(self, firsts: Firsts, tmp_path: Path) -> None:
        below = [firsts.run(CLASSIFY, kind) for kind in ("houlsby", "pfeiffer")]
        run = stacked(tmp_path, CLASSIFY, "houlsby", firsts.bases["encoder"], *below, name="first")
        complete(run)
        stack = load(run)
        assert stack.adapter_names == ["first", "first-2", "first-3"]
        stack.set_active("first-2")
        assert torch.equal(outputs(stack, run), outputs(load(below[1]), below[1]))

    def test_an_unknown_name_is_told_the_known_ones(self, firsts: Firsts) -> None:
        with pytest.raises(ValueError, match="no adapter 'x'; there are first"):
            load(firsts.run(CLASSIFY, "houlsby")).set_active("x")

    def test_saving_while_an_earlier_one_is_active_saves_the_same(self, firsts: Firsts, tmp_path: Path) -> None:
        run = stacked(tmp_path, CLASSIFY, "lora", firsts.bases["encoder"], firsts.run(CLASSIFY, "houlsby"))
        complete(run)
        stack = load(run)
        stack.set_active("first")
        stack.save_pretrained(tmp_path / "again")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "again" / name).read_bytes() == (output(run) / name).read_bytes(), name
        assert stack.active == "first"


class TestTraining:
    def test_only_the_new_adapter_and_its_head_are_trained(self, firsts: Firsts, tmp_path: Path) -> None:
        loop = make_loop(
            stacked(tmp_path, CLASSIFY, "houlsby", firsts.bases["encoder"], firsts.run(CLASSIFY, "houlsby"))
        )
        trained = {name for name, one in loop.model.named_parameters() if one.requires_grad}
        assert trained == set(loop.tuning.trained)
        assert all(".adapters.1." in name or name.startswith("model.classifier.") for name in trained)
        # 2 layers x 2 places x (32 x 8 + 8 + 8 x 32 + 32), and 3 labels x 32 + 3.
        assert sum(one.parameter.numel() for one in loop.tuning.trained.values()) == 4 * 552 + 99
        before = {name: one.detach().clone() for name, one in loop.model.named_parameters()}
        loop.run()
        moved = {name for name, one in loop.model.named_parameters() if not torch.equal(one, before[name])}
        assert moved == trained

    def test_dropout_of_the_earlier_one_is_off(self, tiny_bert: Path, tmp_path: Path) -> None:
        adapter = TYPES["houlsby"] | {"dropout": "0.5"}
        below = adapter_run(tmp_path / "first", CLASSIFY, tiny_bert, adapter, "first")
        complete(below)
        run = adapter_run(tmp_path / "second", CLASSIFY, tiny_bert, adapter, "second", [output(below)])
        adapters = [one.adapters for one in make_loop(run).model.modules() if isinstance(one, AdaptedLinear)]
        dropouts = [one.p for both in adapters for one in both.modules() if isinstance(one, nn.Dropout)]
        assert dropouts == [0.0, 0.5] * 4

    def test_starts_where_the_earlier_one_ended(self, firsts: Firsts, tmp_path: Path) -> None:
        """LoRA's update is zero at first: with the earlier head put in, the logits are the earlier ones."""
        below = firsts.run(CLASSIFY, "houlsby")
        loop = make_loop(stacked(tmp_path, CLASSIFY, "lora", firsts.bases["encoder"], below, num_labels=2))
        head = load_file(output(below) / "model.safetensors")
        with torch.no_grad():
            for name in ("weight", "bias"):
                loop.model.get_parameter(f"model.classifier.{name}").copy_(head[f"model.classifier.{name}"])
        assert torch.equal(outputs(loop.model, below), outputs(load(below), below))

    def test_earlier_code_is_never_run(self, firsts: Firsts, tmp_path: Path) -> None:
        below = tmp_path / "below"
        shutil.copytree(output(firsts.run(CLASSIFY, "houlsby")), below)
        (below / "modeling_adapters.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        run = adapter_run(tmp_path / "run", CLASSIFY, firsts.bases["encoder"], TYPES["lora"], stack_on=[below])
        complete(run)  # the export's check too, in a process of its own
        assert not (tmp_path / "ran").exists()
        assert "open(" not in (output(run) / "modeling_adapters.py").read_text()

    def test_another_earlier_output_makes_checkpoints_void(self, firsts: Firsts, tmp_path: Path) -> None:
        below = tmp_path / "below"
        shutil.copytree(output(firsts.run(CLASSIFY, "lora")), below)
        run = adapter_run(tmp_path / "run", CLASSIFY, firsts.bases["encoder"], TYPES["lora"], stack_on=[below])
        complete(run)
        (below / MANIFEST).unlink()
        tensors = load_file(below / "adapter_model.safetensors")
        save_file({name: one + 0.01 for name, one in tensors.items()}, below / "adapter_model.safetensors")
        complete(run)
        assert any("other data or another model" in note for note in notes(run))
        assert not any("resumed" in note for note in notes(run))

    @pytest.mark.parametrize("step", [1, 5])
    def test_killed_and_resumed_to_the_same_bits(self, firsts: Firsts, tmp_path: Path, step: int) -> None:
        below = firsts.run(CLASSIFY, "lora")
        adapter = TYPES["houlsby"] | {"dropout": "0.1"}
        fields: dict[str, Any] = {"training": {"maxSteps": 8}, "checkpoint": {"everySteps": 2}}
        runs = [
            adapter_run(tmp_path / name, CLASSIFY, firsts.bases["encoder"], adapter, name, [output(below)], **fields)
            for name in ("whole", "killed")
        ]
        runs[1] = runs[1].model_copy(update={"name": "whole"})
        assert processes.run_trainer(runs[0]) == ExitCode.COMPLETE
        place = "finetune_trainer.optim:learning_rate_factor"
        kill = functools.partial(processes.signal_before, place, step, signal.SIGKILL)
        assert processes.run_trainer(runs[1], kill) == -signal.SIGKILL
        assert bool(step > 2) == bool(list(Path(runs[1].work_dir).rglob("step-*")))
        assert processes.run_trainer(runs[1]) == ExitCode.COMPLETE
        assert end_state(runs[0]) == end_state(runs[1])
        assert len(checkpoints(runs[0])) == 2


class TestMaths:
    def test_of_a_stack_by_hand(self) -> None:
        """LoRA, then IA3 on the inputs, then a bottleneck: each around what is below it."""
        torch.manual_seed(0)
        base, inputs = nn.Linear(6, 4), torch.randn(3, 6)
        lora = LowRankAdapter(base, rank=2, scale=1.5, dropout=0.0, has_magnitude=False)
        ia3, bottleneck = ScalingAdapter(base, at_input=True), BottleneckAdapter(base, 2, dropout=0.0)
        for parameter in (*lora.parameters(), *ia3.parameters(), *bottleneck.parameters()):
            nn.init.normal_(parameter)
        adapted = AdaptedLinear(base)
        adapted.adapters.update({"0": lora, "1": ia3, "2": bottleneck})
        adapted.active = ("0", "1", "2")
        scaled = inputs * ia3.factor
        hidden = scaled @ base.weight.T + base.bias + 1.5 * scaled @ lora.down.weight.T @ lora.up.weight.T
        inner = hidden @ bottleneck.down.weight.T + bottleneck.down.bias
        gelu = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        expected = hidden + gelu @ bottleneck.up.weight.T + bottleneck.up.bias
        torch.testing.assert_close(adapted(inputs), expected)

    def test_of_dora_by_hand(self) -> None:
        """M (W + s B A) / ||W + s B A||, a norm for each output; the gradient passes the norm by."""
        torch.manual_seed(0)
        base, inputs = nn.Linear(6, 4), torch.randn(3, 6)
        dora = LowRankAdapter(base, rank=2, scale=0.5, dropout=0.0, has_magnitude=True)
        for parameter in dora.parameters():
            nn.init.normal_(parameter)
        assert dora.magnitude is not None
        adapted = AdaptedLinear(base)
        adapted.adapters["0"], adapted.active = dora, ("0",)
        weight = base.weight + 0.5 * dora.up.weight @ dora.down.weight
        norm = weight.detach().pow(2).sum(1).sqrt()
        expected = inputs @ (dora.magnitude / norm)[:, None].mul(weight).T + base.bias
        torch.testing.assert_close(adapted(inputs), expected)
        found = torch.autograd.grad(adapted(inputs).pow(2).sum(), list(dora.parameters()))
        wanted = torch.autograd.grad(expected.pow(2).sum(), list(dora.parameters()))
        torch.testing.assert_close(found, wanted)


def _damage(directory: Path, damage: str) -> None:
    [weights] = directory.glob("*.safetensors")
    tensors = load_file(weights)
    layer = next(
        name for name in sorted(tensors) if ".adapters.0.down" in name or ".lora_A" in name or ".ia3_l" in name
    )
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing":
        gone = "lora_A" if "lora_A" in layer else "ia3_l" if "ia3_l" in layer else "adapters.0.down.weight"
        save_file({name: one for name, one in tensors.items() if gone not in name}, weights)
    elif damage == "shape":
        save_file(tensors | {layer: torch.zeros(3, 3)}, weights)
    elif damage == "json":
        (directory / "config.json").write_text('{"model_type": ')
    elif damage == "head":
        save_file({name: one for name, one in tensors.items() if "classifier" not in name}, weights)
    elif (directory / "adapter_config.json").exists():
        (directory / "adapter_config.json").write_text('{"base_model_name_or_path": ""}')
    else:
        config = json.loads((directory / "config.json").read_text())
        del config["adapters"][0]["modules"]
        (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.usefixtures("unchecked_export")
class TestRefusals:
    def refused(self, directory: Path, base: Path, *below: Path, code: ExitCode = ExitCode.SPEC_INVALID) -> str:
        run = adapter_run(directory / "refused", CLASSIFY, base, TYPES["houlsby"], stack_on=list(below))
        termination = finish(run)
        assert termination.exit_code == code, termination.message
        assert termination.hint
        return termination.message

    @pytest.mark.parametrize("kind", ["houlsby", "lora"])
    def test_another_base(self, firsts: Firsts, tmp_path: Path, kind: str) -> None:
        below = output(firsts.run(CLASSIFY, kind))
        field = "spec.strategy.adapter.stackOn[1]"
        for base, words in [
            (make_model(tmp_path / "other", seed=1), "same shape as spec.model, but with other weights"),
            (make_model(tmp_path / "wide", hidden_size=64), "a model whose hidden_size is 32, and spec.model's is 64"),
            (make_model(tmp_path / "deep", num_hidden_layers=3), "num_hidden_layers is 2, and spec.model's is 3"),
            (make_model(tmp_path / "llama", "llama"), "on a bert model, and spec.model is a llama model"),
        ]:
            first = adapter_run(base.parent / f"{base.name}-first", CLASSIFY, base, TYPES["houlsby"], "own")
            complete(first)
            message = self.refused(tmp_path, base, output(first), below)
            assert field in message
            assert words in message

    def test_what_is_no_output_of_an_adapter_job(self, firsts: Firsts, tmp_path: Path) -> None:
        base, field = firsts.bases["encoder"], "spec.strategy.adapter.stackOn[0]"
        assert f"{field}: {tmp_path}/nothing: No such file" in self.refused(tmp_path, base, tmp_path / "nothing")
        assert "it is a bert model without adapters" in self.refused(tmp_path, base, base)
        (tmp_path / "empty").mkdir()
        assert "it has neither config.json nor adapter_config.json" in self.refused(tmp_path, base, tmp_path / "empty")

    @pytest.mark.parametrize("kind", ["houlsby", "lora"])
    def test_an_output_is_no_base_model(self, firsts: Firsts, tmp_path: Path, kind: str) -> None:
        below = output(firsts.run(CLASSIFY, kind))
        message = self.refused(tmp_path, below, code=ExitCode.MODEL_INVALID)
        assert "not a whole model" in message

    @pytest.mark.parametrize("kind", ["houlsby", "lora", "ia3"])
    @pytest.mark.parametrize("damage", ["cut", "missing", "shape", "json", "entry", "head"])
    def test_what_is_torn(self, firsts: Firsts, tmp_path: Path, kind: str, damage: str) -> None:
        below = tmp_path / "below"
        shutil.copytree(output(firsts.run(CLASSIFY, kind)), below)
        _damage(below, damage)
        # The manifest tells; without it, the files themselves.
        for _ in range(2):
            message = self.refused(tmp_path, firsts.bases["encoder"], below, code=ExitCode.MODEL_INVALID)
            assert "spec.strategy.adapter.stackOn[0]" in message
            (below / MANIFEST).unlink(missing_ok=True)

    @pytest.mark.parametrize(
        ("setting", "value"), [("bias", "all"), ("init_lora_weights", "pissa"), ("rank_pattern", {"query": 4})]
    )
    def test_what_peft_has_and_a_stack_has_not(
        self, firsts: Firsts, tmp_path: Path, setting: str, value: object
    ) -> None:
        below = tmp_path / "below"
        shutil.copytree(output(firsts.run(CLASSIFY, "lora")), below)
        (below / MANIFEST).unlink()
        config = json.loads((below / "adapter_config.json").read_text())
        (below / "adapter_config.json").write_text(json.dumps(config | {setting: value}))
        assert f"{setting} {value!r} cannot be stacked on" in self.refused(tmp_path, firsts.bases["encoder"], below)

    def test_an_adapter_on_one_that_is_not_there(self, firsts: Firsts, tmp_path: Path) -> None:
        below = tmp_path / "below"
        shutil.copytree(output(firsts.run(CLASSIFY, "houlsby")), below)
        (below / MANIFEST).unlink()
        config = json.loads((below / "config.json").read_text())
        config["adapters"][0]["below"] = ["gone"]
        (below / "config.json").write_text(json.dumps(config))
        message = self.refused(tmp_path, firsts.bases["encoder"], below, code=ExitCode.MODEL_INVALID)
        assert "first is on gone, which is not there" in message

    def test_a_class_that_is_no_model(self, firsts: Firsts, tmp_path: Path) -> None:
        below = tmp_path / "below"
        shutil.copytree(output(firsts.run(CLASSIFY, "houlsby")), below)
        (below / MANIFEST).unlink()
        config = json.loads((below / "config.json").read_text())
        config["adapters"][0]["class"] = "pipeline"
        (below / "config.json").write_text(json.dumps(config))
        message = self.refused(tmp_path, firsts.bases["encoder"], below, code=ExitCode.MODEL_INVALID)
        assert "pipeline is no model of transformers" in message


@pytest.mark.slow
def test_a_user_has_both_in_a_fresh_process(firsts: Firsts, tmp_path: Path) -> None:
    """Through the export's own check, and by the model card's lines with nothing of ours to import."""
    below = firsts.run(CLASSIFY, "lora")
    run = stacked(tmp_path, CLASSIFY, "houlsby", firsts.bases["encoder"], below)
    complete(run)
    logits, _ = loaded_by_a_user(f"{lines_of(run)}\nmodel.set_active('first')", tmp_path)
    assert torch.equal(logits, outputs(load(below), below))


@pytest.mark.slow
@pytest.mark.parametrize("task", [TAG, ANSWER, WRITE])
@pytest.mark.parametrize("kind", ["houlsby", "dora"])
def test_a_stack_passes_the_exports_check(firsts: Firsts, tmp_path: Path, task: str, kind: str) -> None:
    base = "llama" if task == WRITE else "encoder"
    complete(stacked(tmp_path, task, kind, firsts.bases[base], firsts.run(task, "lora", base)))
