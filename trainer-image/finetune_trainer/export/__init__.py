"""Writes the tuned model: whole or absent, reloaded in a fresh process and compared before success is declared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_trainer import storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.export import reload
from finetune_trainer.strategies import Tuning

TOLERANCE = 1e-5
NUM_PROBES = 16


def check_target(target: Path) -> None:
    """Raise TrainerError unless the output may be written: absent, empty, or an earlier output of ours."""
    if target.exists() and not target.is_dir():
        raise TrainerError(ExitCode.OUTPUT_REFUSED, f"output {target} is a file", "name a directory")
    if target.is_dir() and any(target.iterdir()) and not (target / storage.MANIFEST).is_file():
        raise TrainerError(
            ExitCode.OUTPUT_REFUSED,
            f"output {target} is not empty, and what is in it was not written by a FineTuneJob",
            "name another directory, or empty it yourself",
        )


def export(
    target: Path,
    tuning: Tuning,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[tuple[str, str | None]],
    max_length: int,
    card: Callable[[float], str],
) -> str:
    """
    Write the model to `target` and return its digest. Raises TrainerError when the reloaded one differs.

    `texts` are compared by their logits; `card` gets the largest difference and returns the model card.
    """

    def fill(directory: Path) -> None:
        tuning.save(directory)
        expected_BC = _logits(tuning, tokenizer, texts, max_length)
        difference = reload.compare(directory, tuning.loader, texts, max_length, expected_BC)
        if not difference <= TOLERANCE * max(1.0, expected_BC.abs().max().item()):
            raise TrainerError(
                ExitCode.EXPORT_MISMATCH,
                f"the exported model gives other logits than the trained one (largest difference {difference:g})",
                "this is a defect; the last checkpoint is kept, please report it with the log",
            )
        (directory / "README.md").write_text(card(difference), encoding="utf-8")

    check_target(target)
    storage.write_directory(target, fill)
    return storage.digest(target)


@torch.no_grad()
def _logits(
    tuning: Tuning, tokenizer: PreTrainedTokenizerBase, texts: list[tuple[str, str | None]], max_length: int
) -> torch.Tensor:
    """Logits [B, C] of the trained model, on the CPU in float32 as the fresh process computes them."""
    tuning.model.eval().to("cpu")
    inputs = reload.encode(tokenizer, texts, max_length)
    logits: torch.Tensor = tuning.model(**inputs).logits.float()
    return logits
