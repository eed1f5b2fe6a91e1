"""Loads an exported model as its users will, in a fresh process that knows only transformers and peft, and compares."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


class NotLoaded(Exception):
    """The exported model does not load, or not as the model that was trained; the message says how."""


def compare(
    directory: Path,
    loader: str,
    model_class: str,
    inputs: dict[str, Any],
    expected: torch.Tensor,
    places: Mapping[str, str] | None = None,
) -> float:
    """Largest absolute difference between expected logits and those of the model loaded from a directory.

    `model_class` of transformers loads it, and `inputs` are its tokenizer's arguments. `places` says where a base model
    lies whose name is not where.
    Raises NotLoaded with the process's last words when it cannot load the model, MemoryError when memory ran out.
    """
    from finetune_trainer import out_of_memory, watchdog  # here, because the fresh process must know nothing of ours

    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request.json"), Path(scratch, "logits.safetensors")
        request.write_text(
            json.dumps(
                {
                    "directory": str(directory),
                    "loader": loader,
                    "model_class": model_class,
                    "inputs": inputs,
                    "answer": str(answer),
                    "places": dict(places or {}),
                }
            )
        )
        process = subprocess.Popen(
            # -P keeps this file's folder off the path, so the process sees installed packages only.
            [sys.executable, "-P", __file__, str(request)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # transformers copies an export's code before it runs it; home may be read-only, and is not ours to fill.
            # The base model is in the cache by now, so the hub need not be asked, nor told the token.
            # It compares on the CPU; transformers and peft take a GPU where they see one.
            env=os.environ | {"HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,  # Ctrl-C is for the trainer, which ends well
        )
        with process, watchdog.child(process.pid):
            said = process.communicate()[1]
        if process.returncode == -signal.SIGKILL:
            raise MemoryError("out of memory: the process that reloads the exported model was killed")
        if process.returncode and out_of_memory.is_said_in(said):
            raise MemoryError("out of memory in the process that reloads the exported model")
        if process.returncode:
            raise NotLoaded(f"the exported model cannot be loaded: {said.strip()[-1000:]}")
        logits = load_file(answer)["logits"]
        if logits.shape != expected.shape:
            raise NotLoaded(f"the exported model gives logits {[*logits.shape]} instead of {[*expected.shape]}")
        return (logits - expected).abs().max().item()


def logits_of(output: Any) -> torch.Tensor:
    """A model's logits in float32; those of an answer's two ends side by side."""
    logits = output.logits if hasattr(output, "logits") else torch.stack([output.start_logits, output.end_logits])
    return logits.float().contiguous()


@torch.no_grad()
def _answer(request: dict[str, Any]) -> None:
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    directory, model_class = request["directory"], getattr(transformers, request["model_class"])
    if request["loader"] == "peft":
        from peft import PeftConfig, PeftModel

        adapter, config = PeftConfig.from_pretrained(directory), AutoConfig.from_pretrained(directory)
        name = adapter.base_model_name_or_path
        settings = getattr(config, "finetune", {}).get("base_settings")
        base = model_class.from_pretrained(
            request["places"].get(name, name),
            revision=adapter.revision,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # the base model's own output layer may be for other labels
            quantization_config=settings and transformers.BitsAndBytesConfig(**settings),
        )
        for module in base.modules() if settings else ():
            # A way of bitsandbytes to compute faster on some CPUs, by rounding once more.
            module.support_avx512bf16_for_cpu = False
        model = PeftModel.from_pretrained(base, directory)
    else:
        model = model_class.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=request["loader"] == "transformers-remote-code"
        )
    inputs = AutoTokenizer.from_pretrained(directory)(**request["inputs"], return_tensors="pt")
    logits = logits_of(model.eval()(**inputs))
    if request["model_class"] == "AutoModelForCausalLM":  # peft gives those of a soft prompt too, before the text's
        logits = logits[:, -inputs["input_ids"].shape[1] :].contiguous()
    save_file({"logits": logits}, request["answer"])


if __name__ == "__main__":
    _answer(json.loads(Path(sys.argv[1]).read_text()))
