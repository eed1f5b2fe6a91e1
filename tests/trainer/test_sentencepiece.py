"""Models whose tokenizer is a SentencePiece file alone, without tokenizer.json: read as that says, and tuned."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from finetune_trainer.models import load_tokenizer
from trainer.adapted import TEXTS
from trainer.loading_lines import lines_of, loaded_by_a_user, names_left
from trainer.runs import complete, output
from trainer.tiny import FULL, LORA, make_rows, make_run


@dataclass(frozen=True, slots=True)
class Kind:
    """How the models of a kind that are on the hub keep their tokens."""

    file: str
    trained: dict[str, Any]
    tokenizer: dict[str, Any]
    body: dict[str, Any]


_UNIGRAM = {"model_type": "unigram", "vocab_size": 120}
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_SHAPE |= {"max_position_embeddings": 64, "initializer_range": 0.15}
KINDS = {
    "deberta-v2": Kind(
        "spm.model",
        _UNIGRAM
        | {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
        | {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
        {"do_lower_case": False, "vocab_type": "spm"},
        _SHAPE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    ),
    "xlm-roberta": Kind("sentencepiece.bpe.model", _UNIGRAM, {}, _SHAPE | {"type_vocab_size": 1}),
    "llama": Kind(
        "tokenizer.model",
        {"model_type": "bpe", "vocab_size": 340, "byte_fallback": True, "remove_extra_whitespaces": False},
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False},
        _SHAPE | {"num_key_value_heads": 1},
    ),
    "t5": Kind(
        "spiece.model",
        _UNIGRAM | {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        {},
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    ),
    "albert": Kind(
        "spiece.model",
        _UNIGRAM
        | {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
        | {"control_symbols": ["[CLS]", "[SEP]", "[MASK]"]},
        {},
        _SHAPE | {"embedding_size": 16},
    ),
}


def make_base(directory: Path, kind: str) -> Path:
    """A tiny model of a kind with SentencePiece's own file, and no other that has tokens in it."""
    directory.mkdir()
    rows = make_rows(400, num_labels=6)
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([*(row["text"] for row in rows), *(row["label"] for row in rows)]),
        model_writer=written,
        hard_vocab_limit=False,
        minloglevel=2,
        **KINDS[kind].trained,
    )
    (directory / KINDS[kind].file).write_bytes(written.getvalue())
    if KINDS[kind].tokenizer:
        (directory / "tokenizer_config.json").write_text(json.dumps(KINDS[kind].tokenizer))
    AutoConfig.for_model(kind).save_pretrained(directory)
    size = len(AutoTokenizer.from_pretrained(directory))
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=size, **KINDS[kind].body)
    AutoModel.from_config(config).save_pretrained(directory)
    assert not (directory / "tokenizer.json").exists()
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_base(tmp_path_factory.mktemp(kind) / "base", kind)
        return made[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_its_tokens_are_those_of_sentencepiece(base: Callable[[str], Path], kind: str) -> None:
    tokenizer = load_tokenizer(base(kind))
    theirs = SentencePieceProcessor(model_file=str(base(kind) / KINDS[kind].file))
    for text in [*TEXTS, "flight of housemusic"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == theirs.encode(text, out_type=str)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", [FULL, LORA], ids=["full", "lora"])
def test_what_was_tuned_loads(base: Callable[[str], Path], tmp_path: Path, kind: str, strategy: dict[str, Any]) -> None:
    run = make_run(tmp_path, base(kind), strategy, training={"maxSteps": 1})
    complete(run)
    known = names_left(run)
    tokens = [load_tokenizer(directory)(TEXTS)["input_ids"] for directory in (base(kind), output(run))]
    assert tokens[0] == tokens[1] == known["tokenizer"](TEXTS)["input_ids"]
    inputs = known["tokenizer"](TEXTS, padding=True, return_tensors="pt")
    assert known["model"].eval()(**inputs).logits.isfinite().all()


@pytest.mark.slow
def test_a_user_loads_it_in_a_fresh_process(base: Callable[[str], Path], tmp_path: Path) -> None:
    run = make_run(tmp_path, base("deberta-v2"), FULL, training={"maxSteps": 1})
    complete(run)
    logits, said = loaded_by_a_user(lines_of(run), tmp_path)
    assert logits.shape == (len(TEXTS), 2)
    assert said == {"labels": ["bad", "good"], "class": "DebertaV2ForSequenceClassification"}
