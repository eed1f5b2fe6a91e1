"""Runs of adapters on every task, and their outputs loaded as transformers and peft load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from finetune_api.run import Run
from finetune_trainer.adapters.modeling_adapters import AdaptedModel
from finetune_trainer.export.reload import logits_of
from finetune_trainer.strategies.stacking import CLASSES
from trainer.extraction import asking_run, tagging_run
from trainer.runs import make_loop, output
from trainer.tiny import make_model, make_run
from trainer.tiny_lm import make_chats, make_lm, make_lm_run

TYPES: dict[str, dict[str, Any]] = {
    "houlsby": {"type": "Bottleneck", "reductionFactor": 4},
    "pfeiffer": {"type": "Bottleneck", "placement": "Pfeiffer", "reductionFactor": 4},
    "lora": {"type": "LoRA", "rank": 2},
    "rslora": {"type": "RSLoRA", "rank": 2},
    "dora": {"type": "DoRA", "rank": 2},
    "ia3": {"type": "IA3"},
}
FAMILY = ["lora", "rslora", "dora", "ia3"]
TASKS = ["TextClassification", "TokenClassification", "QuestionAnswering", "TextGeneration"]
MODEL_CLASSES = {
    "TextClassification": "AutoModelForSequenceClassification",
    "TokenClassification": "AutoModelForTokenClassification",
    "QuestionAnswering": "AutoModelForQuestionAnswering",
    "TextGeneration": "AutoModelForCausalLM",
}
TEXTS = ["the film was fresh", "a dull story", "music in the city house and a long road to it is weak"]


def make_base(directory: Path, task: str) -> Path:
    """A tiny pretrained model for the task: an encoder, or a Llama with tied embeddings."""
    return make_lm(directory, "llama") if task == "TextGeneration" else make_model(directory)


def adapter_run(
    directory: Path,
    task: str,
    model: Path,
    adapter: dict[str, Any],
    name: str = "tiny",
    stack_on: list[Path] | None = None,
    **fields: Any,
) -> Run:
    """A run of a few steps with adapters."""
    strategy = {"adapter": adapter | {"stackOn": [{"uri": f"file://{path}"} for path in stack_on or []]}}
    fields = {"training": {"maxSteps": 3}} | fields
    make: Callable[..., Run] = {"TokenClassification": tagging_run, "QuestionAnswering": asking_run}.get(task, make_run)
    if task == "TextGeneration":
        run = make_lm_run(directory, model, strategy, make_chats(24), **fields)
    else:
        run = make(directory, model, strategy, **fields)
    return run.model_copy(update={"name": name})


def load(run: Run) -> Any:
    """What `from_pretrained` makes of a run's output, in this process."""
    directory, model_class = output(run), getattr(transformers, MODEL_CLASSES[run.spec.task])
    if (directory / "adapter_config.json").exists():
        adapter = peft.PeftConfig.from_pretrained(directory)
        base = model_class.from_pretrained(
            adapter.base_model_name_or_path, config=AutoConfig.from_pretrained(directory), dtype=torch.float32
        )
        return peft.PeftModel.from_pretrained(base, directory).eval()
    if (directory / "modeling_adapters.py").exists():
        model: AdaptedModel = CLASSES[run.spec.task].from_pretrained(directory, dtype=torch.float32)
        return model.eval()
    return model_class.from_pretrained(directory, dtype=torch.float32).eval()


def outputs(model: Any, run: Run) -> torch.Tensor:
    """The logits of TEXTS, of both ends for answers."""
    tokenizer = AutoTokenizer.from_pretrained(output(run))
    with torch.no_grad():
        result = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    return logits_of(result)


def in_memory(run: Run) -> Any:
    """The tuned model of a run that is complete, made from its last checkpoint and never from its output."""
    loop = make_loop(run)
    loop.run()  # resumes at the end: it trains nothing
    return loop.model
