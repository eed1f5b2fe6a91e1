"""An exported tokenizer pads on the base model's own side: a decoder's answers in a batch are those it gives alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from finetune_trainer.export import reload
from trainer.adapted import adapter_run, load, make_base
from trainer.runs import complete, output
from trainer.tiny import FULL, LORA, make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

PROMPTS = ["the film is", "a story of light and sound in the city"]
MERGED = {"adapter": {"type": "LoRA", "rank": 2, "merge": True}}
BOTTLENECK = {"adapter": {"type": "Bottleneck", "reductionFactor": 4}}
PROMPT = {"promptTuning": {"numVirtualTokens": 4}}


def left_padding(base: Path) -> Path:
    """The base model, whose tokenizer now says that it pads on the left."""
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    return base


def side(directory: Path) -> str:
    found: str = AutoTokenizer.from_pretrained(directory).padding_side
    return found


def written(model: Any, tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """What a model writes after prompts, as one batch that the tokenizer pads."""
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=-1)
    ids: list[list[int]] = found[:, inputs["input_ids"].shape[1] :].tolist()
    return ids


@pytest.mark.usefixtures("unchecked_export")
class TestGeneration:
    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        return left_padding(make_lm(tmp_path / "base"))

    @pytest.mark.parametrize("strategy", [FULL, LORA, MERGED, BOTTLENECK], ids=["full", "lora", "merged", "bottleneck"])
    def test_a_batch_is_answered_as_each_prompt_alone(
        self, tmp_path: Path, base: Path, strategy: dict[str, Any]
    ) -> None:
        run = make_lm_run(tmp_path, base, strategy, make_chats(16))
        complete(run)
        model, tokenizer = load(run), AutoTokenizer.from_pretrained(output(run))
        alone = [written(model, tokenizer, [prompt])[0] for prompt in PROMPTS]
        assert written(model, tokenizer, PROMPTS) == alone
        tokenizer.padding_side = "right"
        assert written(model, tokenizer, PROMPTS) != alone, "the test would not see the other side"

    @pytest.mark.parametrize(
        "strategy",
        [PROMPT, {"distillation": {"teacher": {"uri": "file://base"}, "studentLayers": [1], "response": {}}}],
        ids=["prompt", "distillation"],
    )
    def test_it_is_saved_by_the_other_strategies_too(
        self, tmp_path: Path, base: Path, strategy: dict[str, Any]
    ) -> None:
        run = make_lm_run(tmp_path, base, strategy, make_chats(16))
        complete(run)
        assert side(output(run)) == "left"

    def test_and_by_an_adapter_on_another(self, tmp_path: Path, base: Path) -> None:
        below = adapter_run(tmp_path / "below", "TextGeneration", base, {"type": "LoRA", "rank": 2}, "below")
        complete(below)
        above = adapter_run(
            tmp_path / "above", "TextGeneration", base, {"type": "LoRA", "rank": 2}, "above", [output(below)]
        )
        complete(above)
        assert side(output(above)) == "left"

    def test_the_side_may_stand_in_tokenizer_json_alone(self, tmp_path: Path) -> None:
        base = make_lm(tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer(PROMPTS, padding=True, padding_side="left")
        tokenizer.backend_tokenizer.save(str(base / "tokenizer.json"))
        assert side(base) == "left"
        run = make_lm_run(tmp_path, base, FULL, make_chats(16))
        complete(run)
        assert side(output(run)) == "left"


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("strategy", [FULL, LORA, BOTTLENECK], ids=["full", "lora", "bottleneck"])
def test_other_tasks_train_and_compare_as_ever(tmp_path: Path, kind: str, strategy: dict[str, Any]) -> None:
    """Padded on the left a BERT sees its words at other positions, which an export must not take for a difference."""
    run = make_run(tmp_path, left_padding(make_model(tmp_path / "base", kind)), strategy, training={"maxSteps": 2})
    complete(run)
    assert side(output(run)) == "left"


def test_what_is_compared_are_answers_to_rows_padded_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A BERT answers others of different lengths as each alone, if the words keep their positions."""
    compared: list[tuple[dict[str, Any], torch.Tensor]] = []

    def keep(*arguments: Any) -> float:
        compared.append((arguments[3], arguments[4]))
        return 0.0

    monkeypatch.setattr(reload, "compare", keep)
    run = make_run(tmp_path, left_padding(make_model(tmp_path / "base")), FULL, training={"maxSteps": 2})
    complete(run)
    model, tokenizer = load(run), AutoTokenizer.from_pretrained(output(run))
    [(inputs, logits)] = compared
    assert len({len(tokenizer(text)["input_ids"]) for text in inputs["text"]}) > 1
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in inputs["text"]])
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", ["TokenClassification", "QuestionAnswering"])
def test_so_do_those_with_windows(tmp_path: Path, task: str) -> None:
    run = adapter_run(tmp_path, task, left_padding(make_base(tmp_path / "base", task)), {"type": "LoRA", "rank": 2})
    complete(run)
    assert side(output(run)) == "left"


def test_a_model_with_a_prompt_in_it_pads_on_the_right(tmp_path: Path) -> None:
    """Its own code puts the prompt before or after the first column, which must not be padding."""
    run = make_run(tmp_path, left_padding(make_model(tmp_path / "base")), PROMPT, training={"maxSteps": 2})
    complete(run)
    assert side(output(run)) == "right"
