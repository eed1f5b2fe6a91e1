"""How much better does a small chat model write the answers of a data set after minutes of LoRA on a CPU?

SmolLM2-135M-Instruct, instructions with answers; only the answers are learnt, and perplexity is of them alone.
Usage: python benchmarks/generation.py [--seeds 1 2 3]; it needs `make assets-lm`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from harness import ASSETS, as_json, machine, run_job, write_results

NUM_EVALUATION = 60
JOB: dict[str, Any] = {
    "task": "TextGeneration",
    "model": {"uri": "pvc://examples/models/smollm2-135m-instruct"},
    "strategy": {"adapter": {"type": "LoRA", "rank": 8}},
    "evaluation": {"everySteps": 1000, "batchSize": 8},
}
TRAINING = {"maxSteps": 10, "batchSize": 8, "learningRate": "5e-4"}
DATA = {"train": {"uri": "pvc://examples/data/alpaca/train.jsonl"}, "maxLength": 256}


def main() -> None:
    """Run the job with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    seeds = parser.parse_args().seeds
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        evaluation = Path(scratch, "evaluation.jsonl")
        lines = Path(ASSETS, "data/alpaca/evaluation.jsonl").read_text(encoding="utf-8").splitlines()
        evaluation.write_text("\n".join(lines[:NUM_EVALUATION]) + "\n", encoding="utf-8")
        for seed in seeds:
            data = {**DATA, "evaluation": {"uri": f"file://{evaluation}"}}
            measured = run_job({**JOB, "data": data, "training": {**TRAINING, "seed": seed}}, "chat-lora")
            runs.append({"seed": seed, **as_json(measured)})
            before, after = (part["perplexity"] for part in (measured.result.before, measured.result.after))
            print(f"seed {seed}: {before:.3f} -> {after:.3f} ({measured.cpu_seconds:.0f} CPU-s)", flush=True)
    print(table(runs))
    job = {**JOB, "data": DATA, "training": TRAINING, "evaluationRows": NUM_EVALUATION}
    print("written:", write_results("generation", {"machine": machine(), "job": job, "runs": runs}))


def table(runs: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = ["| seed | perplexity of held-out answers, before -> after | trained | CPU-s |", "|---|---|---|---|"]
    for run in runs:
        result = run["result"]
        share = result["trainableParameters"] / result["totalParameters"]
        before, after = (float(result[when]["perplexity"]) for when in ("before", "after"))
        lines.append(f"| {run['seed']} | {before:.3f} -> {after:.3f} | {share:.2%} | {run['cpu_seconds']:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
