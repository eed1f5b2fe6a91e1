"""A plain Hugging Face `Trainer` on a tiny random model: it knows of no operator, only transformers does."""

from __future__ import annotations

import sys
import time

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

SECONDS_PER_STEP = 0.25


class SlowRows(Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens from a slow disk."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        time.sleep(SECONDS_PER_STEP)
        generator = torch.Generator().manual_seed(row)
        return {"input_ids": torch.randint(5, 50, (8,), generator=generator), "labels": torch.tensor(row % 2)}


def main(output: str, steps: int) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **shape))
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=steps,
        per_device_train_batch_size=1,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
    )
    Trainer(model=model, args=arguments, train_dataset=SlowRows(steps)).train()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
