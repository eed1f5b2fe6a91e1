"""Makes what the trainer's tests train: a random model of 30,000 weights, rows with a rule in them, and a run."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from finetune_api.run import Run

FULL: dict[str, Any] = {"full": {}}
HOULSBY: dict[str, Any] = {"adapter": {"type": "Bottleneck", "reductionFactor": 4}}
PFEIFFER: dict[str, Any] = {"adapter": {"type": "Bottleneck", "placement": "Pfeiffer", "reductionFactor": 4}}
LORA: dict[str, Any] = {"adapter": {"type": "LoRA", "rank": 2}}
STRATEGIES = {"full": FULL, "houlsby": HOULSBY, "pfeiffer": PFEIFFER, "lora": LORA}

NEUTRAL = ["the", "a", "of", "and", "to", "in", "it", "is", "was", "film", "story", "scene", "actor", "music", "plot"]
NEUTRAL += ["screen", "hour", "ending", "moment", "light", "sound", "camera", "voice", "house", "road", "train", "city"]
TELLING = (
    ("bad", "dull poor weak flat tired"),
    ("good", "warm fresh sharp rich bright"),
    ("odd", "strange weird curious queer uncanny"),
    ("sad", "gloomy tearful bleak mournful grim"),
    ("fast", "quick rapid brisk swift hasty"),
    ("slow", "lazy idle sluggish gradual leaden"),
)
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    # Larger than usual, so that a random model already tells one input from another.
    "initializer_range": 0.15,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", _SHAPE | {"type_vocab_size": 2}),
    "roberta": ("RobertaModel", _SHAPE | {"type_vocab_size": 1}),
    "electra": ("ElectraModel", _SHAPE | {"embedding_size": 16}),
    "distilbert": (
        "DistilBertModel",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64}
        | {"initializer_range": 0.15},
    ),
    "deberta-v2": (
        "DebertaV2Model",
        _SHAPE
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
        }
        | {"share_att_key": True, "type_vocab_size": 0, "max_relative_positions": -1},
    ),
    "modernbert": ("ModernBertModel", _SHAPE | {"initializer_cutoff_factor": 2.0, "global_attn_every_n_layers": 2}),
    "llama": ("LlamaModel", _SHAPE | {"num_key_value_heads": 1}),
    "mpnet": ("MPNetModel", _SHAPE),
    "gpt2": ("GPT2Model", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
}
_WITH_TOKEN_TYPES = ("bert", "electra")


def make_model(directory: Path, kind: str = "bert", seed: int = 0, with_pooler: bool = True, **settings: Any) -> Path:
    """Write a tiny pretrained body (no head) with its tokenizer; every weight is random."""
    class_name, shape = KINDS[kind]
    arguments = {} if with_pooler else {"add_pooling_layer": False}
    tokenizer = _make_tokenizer(kind)
    config = AutoConfig.for_model(
        kind, **(shape | {"vocab_size": len(tokenizer), "pad_token_id": 0} | _special_ids(kind) | settings)
    )
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: zeros and ones would hide mistakes
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_rows(count: int, num_labels: int = 2, seed: int = 0) -> list[dict[str, str]]:
    """Rows of 2 to 24 words; one word of each tells the label."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        label, telling = TELLING[number % num_labels]
        words = generator.choices(NEUTRAL, k=generator.choice((2, 3, 5, 8, 13, 24)))
        words.insert(generator.randrange(len(words) + 1), generator.choice(telling.split()))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def make_run(
    directory: Path,
    model: Path,
    strategy: dict[str, Any],
    *,
    num_labels: int = 2,
    num_train: int = 60,
    num_evaluation: int = 24,
    uid: str = "11111111-1111-1111-1111-111111111111",
    **fields: Any,
) -> Run:
    """A run over rows written into `directory`, with its work and its output there; `fields` are of the spec."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "train.jsonl", make_rows(num_train, num_labels, seed=1))
    write_rows(directory / "evaluation.jsonl", make_rows(num_evaluation, num_labels, seed=2))
    spec: dict[str, Any] = {
        "task": "TextClassification",
        "model": {"uri": f"file://{model}"},
        "data": {"train": {"uri": "file://train.jsonl"}, "evaluation": {"uri": "file://evaluation.jsonl"}},
        "strategy": strategy,
        "output": {"uri": "file://out"},
        "resources": {"gpusPerNode": 0},
        **fields,
    }
    training = fields.get("training", {})
    length = {} if "maxSteps" in training else {"epochs": 2}
    spec["training"] = {"batchSize": 8, "learningRate": "2e-3", **length, **training}
    content = {"name": "tiny", "uid": uid, "spec": spec}
    content |= {"workDir": str(directory / "work"), "manifestDir": str(directory)}
    return Run.model_validate_json(json.dumps(content))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    words = [*NEUTRAL, *(word for label, telling in TELLING for word in (label, *telling.split()))]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    vocabulary = list(dict.fromkeys([*_SPECIAL, *words, *characters, *(f"##{one}" for one in characters)]))
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIAL, strict=True))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=special["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (kind in _WITH_TOKEN_TYPES)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, model_input_names=inputs, **special)


def _special_ids(kind: str) -> dict[str, int]:
    return {"cls_token_id": 2, "sep_token_id": 3} if kind == "modernbert" else {"bos_token_id": 2, "eos_token_id": 3}
