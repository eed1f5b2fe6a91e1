"""Kinds of models whose code goes ways of its own: each is tuned as it should be, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from finetune_api.exit_codes import ExitCode
from trainer import tiny, tiny_lm
from trainer.adapted import in_memory, load, outputs
from trainer.runs import complete, finish, make_loop
from trainer.test_prompt_tuning import prompt
from trainer.tiny import FULL, HOULSBY, LORA, make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

pytestmark = pytest.mark.usefixtures("unchecked_export")

_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_SHAPE |= {"max_position_embeddings": 64, "initializer_range": 0.15}
_STATES = {"hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.15}
DECODERS: dict[str, dict[str, Any]] = {
    "recurrent_gemma": _SHAPE
    | {"num_key_value_heads": 1, "lru_width": 32, "head_dim": 16, "block_types": ["recurrent", "attention"]},
    "mamba": _STATES | {"state_size": 4},
    "mamba2": _STATES | {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "jamba": _SHAPE
    | {"num_key_value_heads": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
    | {"mamba_d_state": 4, "mamba_dt_rank": 4},
    "zamba": _SHAPE
    | {"num_hidden_layers": 5, "num_key_value_heads": 2, "attention_head_dim": 32}
    | {"attn_layer_period": 2, "attn_layer_offset": 1}
    | {"mamba_d_state": 4, "mamba_dt_rank": 4, "n_mamba_heads": 2},
    "mixtral": _SHAPE | {"num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1},
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "big_bird": ("BigBirdModel", _SHAPE | {"block_size": 4, "num_random_blocks": 1}),
    "canine": ("CanineModel", _SHAPE | {"local_transformer_stride": 8, "num_hash_buckets": 64}),
    "ibert": ("IBertModel", _SHAPE | {"type_vocab_size": 1}),
    "mra": ("MraModel", _SHAPE),
    "reformer": (
        "ReformerModel",
        {"hidden_size": 32, "attention_head_size": 16, "num_attention_heads": 2, "feed_forward_size": 64}
        | {"axial_pos_embds": False, "max_position_embeddings": 64, "attn_layers": ["local"]}
        | {"local_attn_chunk_length": 16},
    ),
    "t5": (
        "T5Model",
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "xlnet": ("XLNetModel", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
}
MERGED = {"adapter": {"type": "LoRA", "rank": 2, "merge": True}}
DORA = {"adapter": {"type": "DoRA", "rank": 2}}
STATES_OUT = {"adapter": {"type": "LoRA", "rank": 2, "targetModules": ["out_proj"]}}


@pytest.fixture(autouse=True)
def more_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in DECODERS.items():
        monkeypatch.setitem(tiny_lm.ODD_KINDS, name, shape)
    for name, encoder in ENCODERS.items():
        monkeypatch.setitem(tiny.KINDS, name, encoder)


def run_of(directory: Path, kind: str, strategy: dict[str, Any]) -> Any:
    """A few steps of text generation by a decoder, or of classification by an encoder."""
    training = {"maxSteps": 3, "learningRate": "1e-2"}
    if kind in DECODERS:
        return make_lm_run(directory, make_lm(directory / "base", kind), strategy, make_chats(24), training=training)
    return make_run(directory, make_model(directory / "base", kind), strategy, training=training)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("recurrent_gemma", prompt()),
        ("recurrent_gemma", prompt(type="PTuning")),
        ("recurrent_gemma", LORA),
        ("mamba", LORA),
        ("mamba2", LORA),
        ("jamba", LORA),
        ("jamba", STATES_OUT),
        ("zamba", STATES_OUT),
        ("mixtral", LORA),
        ("mixtral", MERGED),
        ("big_bird", HOULSBY),
        ("canine", FULL),
        ("ibert", FULL),
        ("t5", LORA),
    ],
    ids=str,
)
def test_what_is_trained_moves_and_what_is_exported_is_that(
    tmp_path: Path, kind: str, strategy: dict[str, Any]
) -> None:
    run = run_of(tmp_path, kind, strategy)
    loop = make_loop(run)
    before = {name: parameter.detach().clone() for name, parameter in loop.model.named_parameters()}
    loop.run()
    moved = {name for name, one in loop.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved
    assert moved <= set(loop.tuning.trained)
    assert kind in ("canine", "ibert") or moved == set(loop.tuning.trained)  # those have parts for other tasks
    complete(run)
    if "promptTuning" not in strategy:
        torch.testing.assert_close(outputs(load(run), run), outputs(in_memory(run), run), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("mamba", {"in_proj", "x_proj"}),
        ("mamba2", {"in_proj"}),
        # These call the last one always: no kernel does its work.
        ("jamba", {"in_proj", "x_proj", "out_proj"}),
        ("zamba", {"in_proj", "out_proj"}),
    ],
)
def test_updates_of_states_go_where_they_count(tmp_path: Path, kind: str, layers: set[str]) -> None:
    loop = make_loop(run_of(tmp_path, kind, LORA))
    layer = peft.tuners.tuners_utils.BaseTunerLayer
    updated = {name.rpartition(".")[2] for name, one in loop.model.named_modules() if isinstance(one, layer)}
    assert {name for name in updated if name in ("in_proj", "x_proj", "dt_proj", "out_proj")} == layers


def test_a_sparse_model_computes_alike_whatever_it_saw_before(tmp_path: Path) -> None:
    """BigBird would go over to full attention at the first short input, and stay there until it is loaded again."""
    long, short = torch.arange(48)[None], torch.arange(8)[None]
    model = make_loop(run_of(tmp_path, "big_bird", FULL)).model.eval()
    with torch.no_grad():
        first = model(long).logits
        model(short)
        assert torch.equal(model(long).logits, first)
    assert model.config.attention_type == "original_full"


def test_what_xlnet_says_of_a_text_does_not_depend_on_the_others_of_its_batch(tmp_path: Path) -> None:
    """It judges by the last column of a batch, whatever is there."""
    loop = make_loop(run_of(tmp_path, "xlnet", FULL))
    model, task = loop.model.eval(), loop.task
    examples = sorted(task.train, key=lambda example: len(example.input_ids))[::8]
    assert len({len(example.input_ids) for example in examples}) > 1
    with torch.no_grad():
        alone = torch.cat([model(**task.collate([example]).inputs).logits for example in examples])
        together = model(**task.collate(examples).inputs).logits
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    complete(run_of(tmp_path / "exported", "xlnet", FULL))


@pytest.mark.parametrize(
    ("kind", "strategy", "code", "words"),
    [
        (
            "recurrent_gemma", prompt(type="Prefix"), ExitCode.MODEL_INVALID,
            "type Prefix is not possible in RecurrentGemmaForCausalLM: its attention takes no keys and values",
        ),
        (
            "canine", prompt(), ExitCode.MODEL_INVALID,
            "type Prompt is not possible in CanineForSequenceClassification: it takes token numbers only",
        ),
        ("t5", prompt(), ExitCode.MODEL_INVALID, "it has an encoder and a decoder"),
        ("xlnet", prompt(), ExitCode.MODEL_INVALID, "it judges by the last column"),
        ("ibert", LORA, ExitCode.MODEL_INVALID, "no place for LoRA is known in IBertForSequenceClassification"),
        (
            "mamba", {"adapter": {"type": "LoRA", "targetModules": ["in_proj", "dt_proj"]}}, ExitCode.SPEC_INVALID,
            "spec.strategy.adapter.targetModules: dt_proj takes no update in MambaForCausalLM, which may read its",
        ),
        ("mamba2", STATES_OUT, ExitCode.SPEC_INVALID, "out_proj takes no update in Mamba2ForCausalLM, which may read"),
        (
            "jamba", {"adapter": {"type": "LoRA", "targetModules": ["dt_proj", "out_proj"]}}, ExitCode.SPEC_INVALID,
            "spec.strategy.adapter.targetModules: dt_proj takes no update in JambaForCausalLM, which may read its",
        ),
        ("mixtral", DORA, ExitCode.SPEC_INVALID, "DoRA is not possible in the experts of MixtralForCausalLM"),
        ("mra", FULL, ExitCode.MODEL_INVALID, "models of the kind 'mra' cannot be tuned: its attention is nothing"),
        ("reformer", FULL, ExitCode.MODEL_INVALID, "models of the kind 'reformer' cannot be tuned: in training it"),
    ],
    ids=str,
)  # fmt: skip
def test_refused_with_the_reason(
    tmp_path: Path, kind: str, strategy: dict[str, Any], code: ExitCode, words: str
) -> None:
    end = finish(run_of(tmp_path, kind, strategy))
    assert end.exit_code == code
    assert words in end.message
    assert end.hint
