"""How much better does a small chat model write the answers of a data set after minutes of LoRA, or with a prompt?

SmolLM2-135M-Instruct, instructions with answers; only the answers are learnt, and perplexity is of them alone. LoRA
also in 4 bits; a soft prompt from each of its starts.
Usage: python benchmarks/generation.py [--again] [--seeds 1 2 3] [--only lora qlora ...]; it needs `make assets-lm`.
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import ASSETS, ROOT, Runs, mean_and_each, share_trained

RUNS = Runs("generation")
NUM_EVALUATION = 60
_MADE = ROOT / "build" / "generation"
JOB: dict[str, Any] = {
    "task": "TextGeneration",
    "model": {"uri": "pvc://examples/models/smollm2-135m-instruct"},
    "evaluation": {"everySteps": 1000, "batchSize": 8},
}
_LORA: dict[str, Any] = {"type": "LoRA", "rank": 8}
_PROMPT: dict[str, Any] = {"numVirtualTokens": 20}
# Alpaca's own words around each instruction (Taori et al. 2023).
_TEXT = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
# With the default of 2e-4, ten steps are too few.
_LORA_RATE = {"learningRate": "5e-4"}
_PROMPT_RATE = {"learningRate": "1e-2"}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "lora": ({"adapter": _LORA}, _LORA_RATE),
    "qlora": ({"adapter": _LORA | {"quantization": "NF4"}}, _LORA_RATE),
    "prompt, random": ({"promptTuning": _PROMPT | {"initialization": "Random"}}, _PROMPT_RATE),
    "prompt, vocabulary": ({"promptTuning": _PROMPT | {"initialization": "Vocabulary"}}, _PROMPT_RATE),
    "prompt, text": ({"promptTuning": _PROMPT | {"initialization": "Text", "text": _TEXT}}, _PROMPT_RATE),
}
TRAINING = {"maxSteps": 10, "batchSize": 8}
DATA = {
    "train": {"uri": "pvc://examples/data/alpaca/train.jsonl"},
    "evaluation": {"uri": "pvc://made/evaluation.jsonl"},
    "maxLength": 256,
}


def main() -> None:
    """Run what has no result yet and print the table."""
    parser = RUNS.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = RUNS.parse(parser)
    lines = (ASSETS / "data" / "alpaca" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    _MADE.mkdir(parents=True, exist_ok=True)
    (_MADE / "evaluation.jsonl").write_text("\n".join(lines[:NUM_EVALUATION]) + "\n", encoding="utf-8")
    for seed in options.seeds:
        for variant in options.only:
            strategy, rate = VARIANTS[variant]
            job = {**JOB, "strategy": strategy, "data": DATA, "training": {**TRAINING, **rate, "seed": seed}}
            RUNS.job(f"{variant}/{seed}", job, {"made": _MADE})
    print(table(RUNS.of_each(VARIANTS)))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown: perplexity of held-out answers."""
    lines = ["| variant | before | after, mean (each seed) | trained | CPU-s |", "|---|---|---|---|---|"]
    for variant, entries in runs.items():
        results = [entry["result"] for entry in entries]
        before = statistics.mean(float(result["before"]["perplexity"]) for result in results)
        after = mean_and_each(float(result["after"]["perplexity"]) for result in results)
        seconds = statistics.mean(entry["cpu_seconds"] for entry in entries)
        lines.append(f"| {variant} | {before:.3f} | {after} | {share_trained(results[0])} | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
