"""How many tokens are computed for each token of the data: random batches, length buckets, each padded or packed?

Counts only, nothing is trained. Usage: python benchmarks/packing.py; it needs `make assets-lm`.
"""

from __future__ import annotations

import json
import random

from harness import ASSETS, machine, write_results

from finetune_trainer.batching import BucketSampler
from finetune_trainer.data.generation_rows import Chat
from finetune_trainer.data.learnt_tokens import Encoder
from finetune_trainer.data.packing import filled_rows
from finetune_trainer.models import load_tokenizer

BATCH_SIZES = (8, 16, 32)
MAX_LENGTH = 512


def main() -> None:
    """Count, print the table and write it."""
    lengths = lengths_of_chats()
    order = list(range(len(lengths)))
    random.Random(0).shuffle(order)
    figures = []
    for size in BATCH_SIZES:
        sampler = BucketSampler(lengths, size, seed=1)
        bucketed = [sampler.next() for _ in range(sampler.batches_per_epoch)]
        shuffled = [order[start : start + size] for start in range(0, len(order), size)]
        found = {"batchSize": size}
        for name, batches in (("random", shuffled), ("bucketed", bucketed)):
            inside = [[lengths[row] for row in batch] for batch in batches]
            found[f"{name}Padded"] = sum(len(batch) * max(batch) for batch in inside) / sum(lengths)
            found[f"{name}Packed"] = sum(len(filled_rows(batch)) * max(batch) for batch in inside) / sum(lengths)
        figures.append(found)
    print("| batch size | random, padded | random, packed | buckets, padded | buckets, packed |\n|---|---|---|---|---|")
    for found in figures:
        size, *shares = found.values()
        print(f"| {size} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    content = {"machine": machine(), "chats": len(lengths), "tokens": sum(lengths), "computedPerToken": figures}
    print("written:", write_results("packing", content))


def lengths_of_chats() -> list[int]:
    """Tokens of each chat of the example data, in the example model's template."""
    encoder = Encoder(load_tokenizer(ASSETS / "models/smollm2-135m-instruct"))
    lines = (ASSETS / "data/alpaca/train.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [Chat(tuple(json.loads(line)["messages"]), "") for line in lines]
    return [min(MAX_LENGTH, len(encoder.encode(chat, "").ids)) for chat in chats]


if __name__ == "__main__":
    main()
