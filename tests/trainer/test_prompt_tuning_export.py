"""A tuned prompt is exported as it was trained: with the untouched model, or alone in peft's format for generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.loop import TrainingLoop
from trainer.extraction import asking_run, tagging_run
from trainer.loading_lines import names_left
from trainer.runs import complete, finish, make_loop, output
from trainer.test_prompt_tuning import TYPES, prompt
from trainer.tiny import FULL, make_model, make_run
from trainer.tiny_lm import ODD_KINDS, make_lm, make_lm_run

TEXTS = [{"text": "the film was fresh and"}, {"text": "a dull story in the city house and a long road to it"}]
DECODERS = ["llama", "untied", "gpt2", "gemma3_text", "bloom", *ODD_KINDS]


def trained(run: Run) -> TrainingLoop:
    """The model of a run after training, without its export."""
    loop = make_loop(run)
    loop.run()
    loop.model.eval()
    return loop


class TestWithTheModel:
    @pytest.mark.parametrize("prompt_type", TYPES)
    def test_classification(self, tiny_bert: Path, tmp_path: Path, prompt_type: str) -> None:
        """`complete` reloads it in a fresh process and compares its logits."""
        run = make_run(tmp_path, tiny_bert, prompt(type=prompt_type), training={"maxSteps": 3, "learningRate": "3e-2"})
        end = complete(run)
        assert end.result is not None
        stored, base = load_file(output(run) / "model.safetensors"), load_file(tiny_bert / "model.safetensors")
        for name, tensor in base.items():
            assert torch.equal(stored.pop(f"model.bert.{name}"), tensor), name
        assert set(stored) == {"model.classifier.weight", "model.classifier.bias", "prompt.weight"}
        assert stored["prompt.weight"].shape == ((2, 2, 2, 6, 16) if prompt_type == "Prefix" else (6, 32))

    @pytest.mark.parametrize(
        ("make", "prompt_type"), [(tagging_run, "PTuning"), (asking_run, "Prefix")], ids=["tags", "questions"]
    )
    def test_extraction(self, tiny_bert: Path, tmp_path: Path, make: Any, prompt_type: str) -> None:
        run = make(tmp_path, tiny_bert, prompt(type=prompt_type), training={"maxSteps": 3, "learningRate": "1e-2"})
        complete(run)
        assert (output(run) / "modeling_prompt.py").exists()

    @pytest.mark.usefixtures("unchecked_export")
    def test_an_output_is_no_base_model(self, tiny_bert: Path, tmp_path: Path) -> None:
        run = make_run(tmp_path / "first", tiny_bert, prompt(), training={"maxSteps": 2})
        complete(run)
        termination = finish(make_run(tmp_path / "second", output(run), FULL))
        assert termination.exit_code == ExitCode.MODEL_INVALID
        assert "the output of a prompt tuning job, not a whole model" in termination.message
        assert termination.hint == "name its base model"

    def test_classification_with_a_decoder(self, tmp_path: Path) -> None:
        base = make_model(tmp_path / "base", "llama")
        complete(make_run(tmp_path, base, prompt(type="Prefix"), training={"maxSteps": 3, "learningRate": "1e-2"}))

    def test_ptuning_exports_what_its_encoder_makes(
        self, tiny_bert: Path, tmp_path: Path, unchecked_export: None
    ) -> None:
        training = {"maxSteps": 3, "learningRate": "1e-2"}
        complete(make_run(tmp_path / "a", tiny_bert, prompt(type="PTuning"), training=training))
        loop = trained(make_run(tmp_path / "b", tiny_bert, prompt(type="PTuning"), training=training))
        stored = load_file(tmp_path / "a" / "out" / "model.safetensors")["prompt.weight"]
        assert torch.equal(stored, loop.model.prompt())
        assert not torch.equal(stored, loop.model.prompt.embeddings)

    def test_its_tokenizer_leaves_room_for_the_prompt(
        self, tiny_bert: Path, tmp_path: Path, unchecked_export: None
    ) -> None:
        run = make_run(tmp_path, tiny_bert, prompt(numVirtualTokens=30), training={"maxSteps": 1})
        complete(run)
        assert AutoTokenizer.from_pretrained(output(run)).model_max_length == 64 - 30

    def test_without_its_code_it_is_not_loaded_as_something_else(
        self, tiny_bert: Path, tmp_path: Path, unchecked_export: None
    ) -> None:
        run = make_run(tmp_path, tiny_bert, prompt(), training={"maxSteps": 1})
        complete(run)
        with pytest.raises(ValueError, match=r"trust_remote_code|PromptConfig"):
            AutoModelForSequenceClassification.from_pretrained(output(run))


class TestInPeftsFormat:
    def run_of(self, directory: Path, kind: str, prompt_type: str) -> Run:
        training = {"maxSteps": 3, "learningRate": "3e-2"}
        base = make_lm(directory / "base", kind)
        return make_lm_run(directory, base, prompt(type=prompt_type), TEXTS * 8, training=training)

    @pytest.mark.parametrize("prompt_type", ["Prefix", "PTuning"])
    def test_reloaded(self, tmp_path: Path, prompt_type: str) -> None:
        run = self.run_of(tmp_path, "llama", prompt_type)
        complete(run)
        assert set(load_file(output(run) / "adapter_model.safetensors")) == {"prompt_embeddings"}
        assert not (output(run) / "model.safetensors").exists()
        assert isinstance(names_left(run)["model"], PeftModel)

    @pytest.mark.parametrize("kind", DECODERS)
    @pytest.mark.parametrize("prompt_type", TYPES)
    def test_peft_gives_the_same_logits_and_text(self, tmp_path: Path, kind: str, prompt_type: str) -> None:
        if (kind, prompt_type) == ("mamba", "Prefix"):
            pytest.skip("mamba has no keys and values")
        loop = trained(self.run_of(tmp_path, kind, prompt_type))
        loop.tuning.save(tmp_path / "saved")
        theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        batch = loop.task.collate(loop.task.train[:4])
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        length = inputs["input_ids"].shape[1]
        torch.testing.assert_close(theirs(**inputs).logits[:, -length:], loop.model(**inputs).logits, rtol=0, atol=1e-5)
        ids = torch.tensor([loop.task.train[0].input_ids[:5]])
        written = theirs.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert written.tolist() == greedy(loop, ids, written.shape[1]).tolist()

    def test_only_the_prompt_is_trained(self, tmp_path: Path) -> None:
        loop = trained(self.run_of(tmp_path, "untied", "Prompt"))
        assert set(loop.tuning.trained) == {"prompt.weight"}
        stored = load_file(tmp_path / "base" / "model.safetensors")
        after = dict(loop.model.model.named_parameters())
        assert all(torch.equal(after[name], tensor) for name, tensor in stored.items())
        assert loop.state.last["loss"] < loop.state.before["loss"]


@torch.no_grad()
def greedy(loop: TrainingLoop, ids: Tensor, length: int) -> Tensor:
    """The likeliest token after another, without a cache."""
    while ids.shape[1] < length:
        ids = torch.cat([ids, loop.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids
