"""Rows to extract from, with a rule in them: words tagged by their meaning, and questions after such a word."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune_api.run import Run
from trainer.tiny import NEUTRAL, TELLING, make_run, write_rows

KINDS = ("bad", "good")
WORDS_OF = {kind: telling.split() for kind, telling in TELLING[:2]}
FOLLOWING = ("film", "story")
FILLING = [word for word in NEUTRAL if word not in FOLLOWING]


def tagged_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Words of which some are tagged: a telling word by its kind, and "film" or "story" after it too."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        tokens = generator.choices(FILLING, k=generator.choice((1, 2, 4, 8, 16)))
        tags = ["O"] * len(tokens)
        for kind in generator.sample(KINDS, k=1 + number % 2):
            place = generator.choice([p for p in range(len(tokens) + 1) if p == len(tokens) or tags[p] == "O"])
            entity = [generator.choice(WORDS_OF[kind])] + [generator.choice(FOLLOWING)] * generator.randrange(2)
            tokens[place:place] = entity
            tags[place:place] = [f"B-{kind}", f"I-{kind}"][: len(entity)]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def question_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Which bad, or which good word is in the text? The other kind is there too; one question in four has no answer."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        asked, other = generator.sample(KINDS, k=2)
        words = generator.choices(NEUTRAL, k=generator.choice((2, 4, 8, 16)))
        words.insert(generator.randrange(len(words) + 1), generator.choice(WORDS_OF[other]))
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if number % 4:
            place, answer = generator.randrange(len(words) + 1), generator.choice(WORDS_OF[asked])
            words.insert(place, answer)
            answers = {"text": [answer], "answer_start": [sum(len(word) + 1 for word in words[:place])]}
        rows.append({"question": asked, "context": " ".join(words), "answers": answers})
    return rows


def tagging_run(directory: Path, model: Path, strategy: dict[str, Any], num_train: int = 120, **fields: Any) -> Run:
    """A token classification job over such rows."""
    return _run(directory, model, strategy, "TokenClassification", tagged_rows, num_train, fields)


def asking_run(directory: Path, model: Path, strategy: dict[str, Any], num_train: int = 120, **fields: Any) -> Run:
    """A question answering job over such rows."""
    return _run(directory, model, strategy, "QuestionAnswering", question_rows, num_train, fields)


def _run(
    directory: Path, model: Path, strategy: dict[str, Any], task: str, rows: Any, num_train: int, fields: dict[str, Any]
) -> Run:
    directory.mkdir(parents=True, exist_ok=True)
    write_rows(directory / "rows.jsonl", rows(num_train, seed=1))
    write_rows(directory / "held.jsonl", rows(40, seed=2))
    data = {"train": {"uri": "file://rows.jsonl"}, "evaluation": {"uri": "file://held.jsonl"}, "deduplicate": False}
    data |= fields.pop("data", {})
    return make_run(directory, model, strategy, task=task, data=data, **fields)


def with_byte_tokens(model: Path, text: str, *, has_specials: bool) -> Path:
    """Give a model a tokenizer as GPT-2, RoBERTa and Llama 3 have it: of bytes, and of words with the space before."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text] * 3, trainer)
    if has_specials:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    names = {"pad_token": "<pad>", "eos_token": "</s>"}
    names |= {"cls_token": "<s>", "sep_token": "</s>"} if has_specials else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=48,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    ).save_pretrained(model)
    return model
