"""Loads an exported model as its users will, in a fresh process that knows only transformers and peft, and compares."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class NotLoaded(Exception):
    """The exported model does not load, or not as the model that was trained; the message says how."""


def compare(
    directory: Path, loader: str, texts: list[tuple[str, str | None]], max_length: int, expected_BC: torch.Tensor
) -> float:
    """Largest absolute difference between expected logits and those of the model loaded from a directory.

    Raises NotLoaded with the process's last words when it cannot load the model, MemoryError when it was killed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.json"), Path(scratch, "logits.safetensors")
        request.write_text(
            json.dumps(
                {
                    "directory": str(directory),
                    "loader": loader,
                    "texts": texts,
                    "max_length": max_length,
                    "answer": str(answer),
                }
            )
        )
        done = subprocess.run(
            # -P keeps this file's folder off the path, so the process sees installed packages only.
            [sys.executable, "-P", __file__, str(request)],
            capture_output=True,
            text=True,
            check=False,
            # transformers copies an export's code before it runs it; home may be read-only, and is not ours to fill.
            env=os.environ | {"HF_MODULES_CACHE": scratch},
            start_new_session=True,  # Ctrl-C is for the trainer, which ends well
        )
        if done.returncode == -signal.SIGKILL:
            raise MemoryError("out of memory: the process that reloads the exported model was killed")
        if done.returncode:
            raise NotLoaded(f"the exported model cannot be loaded: {done.stderr.strip()[-1000:]}")
        logits_BC = load_file(answer)["logits"]
        if logits_BC.shape != expected_BC.shape:
            raise NotLoaded(f"the exported model gives logits {[*logits_BC.shape]} instead of {[*expected_BC.shape]}")
        return (logits_BC - expected_BC).abs().max().item()


def encode(tokenizer: Any, texts: list[tuple[str, str | None]], max_length: int) -> Any:
    """Texts, or pairs of texts, as padded tensors."""
    firsts = [first for first, _ in texts]
    seconds = [second for _, second in texts] if texts[0][1] is not None else None
    return tokenizer(firsts, seconds, truncation=True, max_length=max_length, padding=True, return_tensors="pt")


@torch.no_grad()
def _answer(request: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    directory = request["directory"]
    if request["loader"] == "peft":
        from peft import PeftConfig, PeftModel

        adapter = PeftConfig.from_pretrained(directory)
        base = AutoModelForSequenceClassification.from_pretrained(
            adapter.base_model_name_or_path,
            revision=adapter.revision,
            config=AutoConfig.from_pretrained(directory),
            dtype=torch.float32,
        )
        model = PeftModel.from_pretrained(base, directory)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=request["loader"] == "transformers-remote-code"
        )
    inputs = encode(AutoTokenizer.from_pretrained(directory), request["texts"], request["max_length"])
    save_file({"logits": model.eval()(**inputs).logits.float().contiguous()}, request["answer"])


if __name__ == "__main__":
    _answer(json.loads(Path(sys.argv[1]).read_text()))
