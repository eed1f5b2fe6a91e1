"""A base model in 4 bits below LoRA: what transformers' and bitsandbytes' own make of it, on every task."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, BitsAndBytesConfig

from finetune_api.exit_codes import ExitCode
from finetune_trainer.models import load_model, load_tokenizer, num_parameters
from finetune_trainer.strategies import quantized
from trainer.adapted import MODEL_CLASSES, TASKS, adapter_run, in_memory, make_base, outputs
from trainer.loading_lines import names_left
from trainer.runs import complete, finish, interrupted, make_loop, notes, output
from trainer.tiny import make_model
from trainer.tiny_lm import make_lm

NF4: dict[str, Any] = {"type": "LoRA", "rank": 2, "quantization": "NF4"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: make_base(tmp_path_factory.mktemp(task) / "base", task) for task in TASKS}


def as_the_card_says(run: Any) -> Any:
    """The output, loaded by the lines that are printed for it and are in its model card."""
    known = names_left(run)
    for module in known["base"].modules():  # some CPUs round once more, to be faster
        module.support_avx512bf16_for_cpu = False
    return known["model"]


def test_the_model_in_4_bits_is_that_of_transformers(tmp_path: Path) -> None:
    """Its own quantization of the same checkpoint, layer by layer: bit for bit."""
    base = make_model(tmp_path / "base")
    loaded = load_model(AutoModelForSequenceClassification, base, load_tokenizer(base))
    whole = copy.deepcopy(loaded.model)
    kept = quantized.quantize(loaded)
    assert kept == ["classifier"]
    theirs = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**quantized.settings(kept))
    )
    in_4_bits = [name for name, one in loaded.model.named_parameters() if one.dtype == torch.uint8]
    assert len(in_4_bits) == 2 * 6 + 1  # of two layers, and the pooler
    for name, parameter in loaded.model.base_model.named_parameters():
        assert torch.equal(parameter, theirs.base_model.get_parameter(name)), name
    assert num_parameters(loaded.model.parameters()) == num_parameters(whole.parameters())


def test_under_autocast_it_computes_in_its_type(tmp_path: Path) -> None:
    """As a linear layer with the same weights does, to the bit; and the layer itself is not rounded by it."""
    base = make_model(tmp_path / "base")
    loaded = load_model(AutoModelForSequenceClassification, base, load_tokenizer(base))
    quantized.quantize(loaded)
    layer: Any = loaded.model.base_model.encoder.layer[0].intermediate.dense
    torch.nn.init.normal_(layer.bias)
    weight, bias = dequantize_4bit(layer.weight.data, layer.weight.quant_state), layer.bias.detach().clone()
    inputs = torch.randn(3, 32, requires_grad=True)
    for training in (True, False):
        layer.train(training)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = layer(inputs), torch.nn.functional.linear(inputs, weight, bias)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected)
        gradients = [torch.autograd.grad(one.sum(), inputs)[0] for one in (found, expected)]
        assert torch.equal(*gradients)
    assert torch.equal(layer.bias, bias)
    torch.testing.assert_close(layer(inputs), torch.nn.functional.linear(inputs, weight, bias))


@pytest.mark.parametrize("kind", ["LoRA", "DoRA"])
@pytest.mark.usefixtures("unchecked_export")
def test_the_output_is_what_was_trained_in_bfloat16(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    task = "TextClassification"
    training = {"maxSteps": 3, "precision": "BF16"}
    run = adapter_run(tmp_path, task, bases[task], NF4 | {"type": kind}, training=training)
    complete(run)
    tuned = outputs(in_memory(run), run)
    torch.testing.assert_close(outputs(as_the_card_says(run), run), tuned, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["LoRA", "RSLoRA", "DoRA"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.usefixtures("unchecked_export")
def test_the_output_is_what_was_trained(bases: dict[str, Path], tmp_path: Path, kind: str, task: str) -> None:
    run = adapter_run(tmp_path, task, bases[task], NF4 | {"type": kind})
    complete(run)
    tuned = outputs(in_memory(run), run)
    model = as_the_card_says(run)
    assert isinstance(model, PeftModel)
    torch.testing.assert_close(outputs(model, run), tuned, rtol=0, atol=1e-6)
    # Neither what it was before, nor what the adapter makes of the base model in 32 bits.
    assert (tuned - outputs(make_loop(run.model_copy(update={"work_dir": f"{tmp_path}/new"})).model, run)).any()
    model_class = getattr(transformers, MODEL_CLASSES[task])
    whole = model_class.from_pretrained(
        bases[task], config=AutoConfig.from_pretrained(output(run)), dtype=torch.float32
    )
    assert (outputs(PeftModel.from_pretrained(whole, output(run)), run) - tuned).abs().max() > 1e-4


@pytest.mark.slow
def test_the_export_is_checked_in_a_fresh_process(bases: dict[str, Path], tmp_path: Path) -> None:
    run = adapter_run(tmp_path, "TextClassification", bases["TextClassification"], NF4)
    result = complete(run).result
    assert result is not None
    assert result.total_parameters > 10 * result.trainable_parameters


@pytest.mark.usefixtures("unchecked_export")
def test_a_resumed_run_ends_with_the_same_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    fields: dict[str, Any] = {"training": {"maxSteps": 6}, "checkpoint": {"everySteps": 2}}
    runs = [
        adapter_run(tmp_path / name, "TextClassification", bases["TextClassification"], NF4, **fields)
        for name in ("whole", "stopped")
    ]
    interrupted(make_loop(runs[1]), 3)
    for run in runs:
        complete(run)
    assert "resumed" in " ".join(notes(runs[1]))
    whole, stopped = ((output(run) / "adapter_model.safetensors").read_bytes() for run in runs)
    assert whole == stopped


@pytest.mark.usefixtures("unchecked_export")
def test_nothing_is_stacked_on_it(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["TextClassification"]
    first = adapter_run(tmp_path / "first", "TextClassification", base, NF4)
    complete(first)
    second = adapter_run(tmp_path / "second", "TextClassification", base, {"type": "LoRA"}, stack_on=[output(first)])
    termination = finish(second)
    assert termination.exit_code == ExitCode.SPEC_INVALID
    assert "stackOn[0]: the adapter was trained on a base model in NF4" in termination.message


def test_a_model_without_such_layers_is_refused(tmp_path: Path) -> None:
    run = adapter_run(tmp_path, "TextGeneration", make_lm(tmp_path / "base", "gpt2"), NF4)
    termination = finish(run)
    assert termination.exit_code == ExitCode.MODEL_INVALID
    assert "quantization: GPT2LMHeadModel has no linear layer that bitsandbytes knows" in termination.message
