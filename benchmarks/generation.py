"""How much better does a small chat model write the answers of a data set after minutes of LoRA on a CPU?

SmolLM2-135M-Instruct, instructions with answers; only the answers are learnt, and perplexity is of them alone.
Usage: python benchmarks/generation.py [--seeds 1 2 3]; it needs `make assets-lm`.
"""

from __future__ import annotations

import argparse
from typing import Any

from harness import ASSETS, ROOT, Runs, share_trained

RUNS = Runs("generation")
NUM_EVALUATION = 60
_MADE = ROOT / "build" / "generation"
JOB: dict[str, Any] = {
    "task": "TextGeneration",
    "model": {"uri": "pvc://examples/models/smollm2-135m-instruct"},
    "strategy": {"adapter": {"type": "LoRA", "rank": 8}},
    "evaluation": {"everySteps": 1000, "batchSize": 8},
}
TRAINING = {"maxSteps": 10, "batchSize": 8, "learningRate": "5e-4"}
DATA = {
    "train": {"uri": "pvc://examples/data/alpaca/train.jsonl"},
    "evaluation": {"uri": "pvc://made/evaluation.jsonl"},
    "maxLength": 256,
}


def main() -> None:
    """Run what has no result yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    seeds = parser.parse_args().seeds
    lines = (ASSETS / "data" / "alpaca" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    _MADE.mkdir(parents=True, exist_ok=True)
    (_MADE / "evaluation.jsonl").write_text("\n".join(lines[:NUM_EVALUATION]) + "\n", encoding="utf-8")
    for seed in seeds:
        job = {**JOB, "data": DATA, "training": {**TRAINING, "seed": seed}}
        RUNS.job(f"lora/{seed}", job, {"made": _MADE})
    print(table(RUNS.of_each(["lora"])["lora"]))


def table(runs: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| seed | perplexity of held-out answers, before -> after | trained | CPU-s |", "|---|---|---|---|"]
    for run in runs:
        result = run["result"]
        seed = run["job"]["training"]["seed"]
        before, after = (float(result[when]["perplexity"]) for when in ("before", "after"))
        lines.append(f"| {seed} | {before:.3f} -> {after:.3f} | {share_trained(result)} | {run['cpu_seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
