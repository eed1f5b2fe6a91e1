"""A model whose generation settings contradict each other is trained and saved, or refused before the first step."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from finetune_api.exit_codes import ExitCode
from trainer.adapted import adapter_run
from trainer.runs import complete, finish, output
from trainer.tiny import FULL, LORA
from trainer.tiny_lm import EOS, IM_END, make_chats, make_lm, make_lm_run

# As published with vicuna-7b-v1.5.
VICUNA = {"_from_model_config": True, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
STRATEGIES: dict[str, dict[str, Any]] = {
    "full": FULL,
    "lora": LORA,
    "merged": {"adapter": {"type": "LoRA", "rank": 2, "merge": True}},
    "bottleneck": {"adapter": {"type": "Bottleneck", "reductionFactor": 4}},
    "prompt": {"promptTuning": {"numVirtualTokens": 4}},
    "distillation": {"distillation": {"teacher": {"uri": "file://base"}, "studentLayers": [1], "response": {}}},
}


def make_base(tmp_path: Path, **settings: Any) -> Path:
    """A base model with these settings besides its special tokens."""
    base = make_lm(tmp_path / "base")
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (base / "generation_config.json").write_text(json.dumps(tokens | settings))
    return base


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.parametrize("name", STRATEGIES)
def test_settings_for_drawing_without_the_switch_are_saved_with_it(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are kept, and so are the ends; what was published is left as it was."""
    base = make_base(tmp_path, **VICUNA)
    published = (base / "generation_config.json").read_bytes()
    run = make_lm_run(tmp_path, base, STRATEGIES[name], make_chats(16))
    with caplog.at_level(logging.INFO):
        complete(run)
    saved = GenerationConfig.from_pretrained(output(run))
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.9, 0.6)
    assert saved.eos_token_id == AutoTokenizer.from_pretrained(output(run)).convert_tokens_to_ids([EOS, IM_END])
    told = [record.message for record in caplog.records if "do_sample" in record.message]
    assert told == [
        "generation_config.json has temperature, top_p and no do_sample: it is saved with do_sample true, which they "
        "are for"
    ]
    assert (base / "generation_config.json").read_bytes() == published


@pytest.mark.usefixtures("unchecked_export")
def test_so_are_those_of_an_adapter_on_another(tmp_path: Path) -> None:
    base, lora = make_base(tmp_path, **VICUNA), {"type": "LoRA", "rank": 2}
    below = adapter_run(tmp_path / "below", "TextGeneration", base, lora, "below")
    complete(below)
    complete(adapter_run(tmp_path / "above", "TextGeneration", base, lora, "above", [output(below)]))


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.parametrize(
    "settings", [{}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"do_sample": False}, VICUNA]
)
def test_what_can_be_saved_is_left_as_it_is(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Also a contradiction, where plain text ends as the model always did and nothing has to be changed."""
    run = make_lm_run(tmp_path, make_base(tmp_path, **settings), FULL, [{"text": "the film is warm"}] * 8)
    complete(run)
    saved = GenerationConfig.from_pretrained(output(run))
    assert saved.do_sample == settings.get("do_sample")
    assert saved.temperature == settings.get("temperature")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_sample": False, "temperature": 0.9, "top_p": 0.6}, "temperature, top_p,"),
        ({"length_penalty": 0.5}, "length_penalty,"),
        ({"temperature": 0.9, "output_scores": True}, "temperature, output_scores,"),
    ],
)
def test_another_contradiction_is_refused_before_the_first_step(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    run = make_lm_run(tmp_path, make_base(tmp_path, **settings), FULL, make_chats(8))
    termination = finish(run)
    assert termination.exit_code == ExitCode.MODEL_INVALID
    assert f"{tmp_path}/base/generation_config.json: the other settings rule out {named}" in termination.message
    assert "do_sample" in termination.hint
    assert not list(Path(run.work_dir).rglob("step-*"))


def test_settings_that_are_never_valid_are_refused(tmp_path: Path) -> None:
    run = make_lm_run(tmp_path, make_base(tmp_path, num_return_sequences=3), FULL, make_chats(8))
    termination = finish(run)
    assert termination.exit_code == ExitCode.MODEL_INVALID
    assert "num_return_sequences" in termination.message
