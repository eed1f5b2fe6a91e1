"""Makes tiny causal language models with a tokenizer, its chat template and rows, for the tests of text generation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from finetune_api.run import Run
from trainer.tiny import NEUTRAL, TELLING, write_rows

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for message in messages %}{{ message['role'] + '>' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token + '\\n' }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant>' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{{ message['role'] + '>' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant>' }}{% endif %}"
)
# As Qwen3's: what was thought in earlier turns is left out once a later one follows.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] if loop.last else message['content'].split('</think>')[-1] }}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

BOS, EOS, PAD, IM_START, IM_END = "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    # Larger than usual, so that a random model already tells one input from another.
    "initializer_range": 0.15,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": _SHAPE | {"tie_word_embeddings": True},
    "untied": _SHAPE | {"model_type": "llama", "tie_word_embeddings": False},
    "gemma3_text": _SHAPE
    | {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.15},
    # Its bias is by distance in the row, so it cannot tell examples in one row apart.
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.15},
}
# OPT's language model passes its body by, and MPT and Mamba count their layers and heads by other names, or have none.
ODD_KINDS: dict[str, dict[str, Any]] = {
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}
    | {"max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.15},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 128, "initializer_range": 0.15},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.15},
}
_NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout", "attention_dropout"), 0.0)


def make_tokenizer(
    template: str | None = CHATML, *, adds_bos: bool = False, eos: str = EOS, pad: str | None = PAD
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of a few hundred tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS, IM_START, IM_END]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [*NEUTRAL, *(word for _, telling in TELLING for word in telling.split()), "user", "assistant", "system"]
    tokenizer.train_from_iterator([f" {word} {word}" for word in words] * 4, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=eos,
        **({"pad_token": pad} if pad else {}),
        additional_special_tokens=[IM_START, IM_END],
        chat_template=template,
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


def make_lm(
    directory: Path,
    kind: str = "llama",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **settings: Any,
) -> Path:
    """Write a tiny language model with random weights, without dropout, and its tokenizer."""
    tokenizer = tokenizer or make_tokenizer()
    shape = {"vocab_size": len(tokenizer)} | _NO_DROPOUT | (KINDS | ODD_KINDS)[kind] | settings
    config = AutoConfig.for_model(
        shape.pop("model_type", kind),
        **shape,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: zeros and ones would hide mistakes
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Chats of one or two turns, of many lengths."""
    generator = random.Random(seed)

    def text() -> str:
        return " ".join(generator.choices(NEUTRAL, k=generator.choice((1, 2, 3, 5, 8))))

    rows = []
    for number in range(count):
        turns = [part for _ in range(1 + number % 2) for part in (("user", text()), ("assistant", text()))]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


def make_lm_run(
    directory: Path,
    model: Path,
    strategy: dict[str, Any],
    train: list[dict[str, Any]],
    held: list[dict[str, Any]] | None = None,
    **fields: Any,
) -> Run:
    """A run of text generation over rows written into `directory`; `fields` are of the spec."""
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "train.jsonl", train)
    write_rows(directory / "evaluation.jsonl", held or train[:4])
    sources = {"train": {"uri": "file://train.jsonl"}, "evaluation": {"uri": "file://evaluation.jsonl"}}
    spec: dict[str, Any] = {
        "task": "TextGeneration",
        "model": {"uri": f"file://{model}"},
        "strategy": strategy,
        "output": {"uri": "file://out"},
        "resources": {"gpusPerNode": 0},
        **fields,
        "data": {**sources, "deduplicate": False, **fields.get("data", {})},
        "training": {"batchSize": 8, "learningRate": "2e-3", "maxSteps": 4, **fields.get("training", {})},
    }
    content = {"name": "tiny", "uid": "11111111-1111-1111-1111-111111111111", "spec": spec}
    content |= {"workDir": str(directory / "work"), "manifestDir": str(directory)}
    return Run.model_validate_json(json.dumps(content))
