"""What is extracted from real text by a small model? US addresses: every word tagged, and questions answered.

Usage: python benchmarks/extraction.py [--again] [--seeds 1 2 3] [--jobs tags-full ...]
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import Runs, mean_and_each, share_trained

RUNS = Runs("extraction")
_MODEL = {"uri": "pvc://examples/models/minilm"}
_ADAPTER = {"adapter": {"type": "Bottleneck", "reductionFactor": 16}}
_LORA = {"adapter": {"type": "LoRA", "rank": 8}}


def _job(task: str, data: str, strategy: dict[str, Any], epochs: int, learning_rate: str) -> dict[str, Any]:
    folder = f"pvc://examples/data/{data}"
    sources = {name: {"uri": f"{folder}/{name}.jsonl"} for name in ("train", "evaluation")}
    training = {"epochs": epochs, "learningRate": learning_rate}
    return {
        "task": task,
        "model": _MODEL,
        "data": {**sources, "maxLength": 128},
        "strategy": strategy,
        "training": training,
    }


JOBS: dict[str, dict[str, Any]] = {
    "tags-full": _job("TokenClassification", "addresses", {"full": {}}, 4, "2e-4"),
    "tags-adapter": _job("TokenClassification", "addresses", _ADAPTER, 4, "3e-3"),
    "tags-lora": _job("TokenClassification", "addresses", _LORA, 4, "4e-3"),
    "answers-full": _job("QuestionAnswering", "address-questions", {"full": {}}, 2, "2e-4"),
    "answers-adapter": _job("QuestionAnswering", "address-questions", _ADAPTER, 2, "3e-3"),
    "answers-lora": _job("QuestionAnswering", "address-questions", _LORA, 2, "4e-3"),
}


def main() -> None:
    """Run what has no result yet and print the table."""
    parser = RUNS.parser(__doc__)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    options = RUNS.parse(parser)
    for seed in options.seeds:
        for name in options.jobs:
            RUNS.job(f"{name}/{seed}", {**JOBS[name], "training": {**JOBS[name]["training"], "seed": seed}})
    print(table(RUNS.of_each(JOBS)))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| job | metric | mean (each seed) | before | without a model | trained | CPU-s a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entries in runs.items():
        result = entries[0]["result"]
        cpu = statistics.mean(entry["cpu_seconds"] for entry in entries)
        for metric in result["after"]:
            if metric not in ("entityF1", "accuracy", "f1", "exactMatch"):
                continue
            scores = mean_and_each(float(entry["result"]["after"][metric]) for entry in entries)
            before = statistics.mean(float(entry["result"]["before"][metric]) for entry in entries)
            baseline = f"{float(result['baseline']):.3f}" if metric == result["metric"] else ""
            lines.append(
                f"| {name} | {metric} | {scores} | {before:.3f} | {baseline} | {share_trained(result)} | {cpu:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
