"""The reference: the same training with Hugging Face's Trainer and its defaults, in a process of its own.

Usage: python benchmarks/hf_trainer.py DATA_DIRECTORY MODEL_DIRECTORY EPOCHS LEARNING_RATE
Prints one JSON object: seconds of training, accuracy after.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    """Train, evaluate, print."""
    data, model_directory, epochs, learning_rate = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    sets = {name: _rows(Path(data, f"{name}.jsonl"), tokenizer) for name in ("train", "evaluation")}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(
                model_directory, num_labels=2, dtype=torch.float32
            ),
            args=TrainingArguments(
                output_dir=scratch,
                num_train_epochs=float(epochs),
                learning_rate=float(learning_rate),
                per_device_train_batch_size=32,
                per_device_eval_batch_size=64,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=sets["train"],
            eval_dataset=sets["evaluation"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda output: {"accuracy": float((output[0].argmax(-1) == output[1]).mean())},
        )
        seconds = trainer.train().metrics["train_runtime"]
        accuracy = trainer.evaluate()["eval_accuracy"]
    print(json.dumps({"seconds": seconds, "accuracy": accuracy}))


def _rows(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)
    labels = [int(row["label"] == "positive") for row in rows]
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for ids, label in zip(encoded["input_ids"], labels, strict=True)
    ]


if __name__ == "__main__":
    main()
