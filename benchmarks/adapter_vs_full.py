"""Do adapters of less than 4 % of the weights come close to full tuning? Movie reviews, MiniLM, three seeds each.

Usage: python benchmarks/adapter_vs_full.py [--again] [--seeds 1 2 3]
"""

from __future__ import annotations

import statistics
from typing import Any

from harness import Runs, mean_and_each, share_trained

RUNS = Runs("adapter_vs_full")
_DATA = "pvc://examples/data/movies"
_SPEC: dict[str, Any] = {
    "task": "TextClassification",
    "model": {"uri": "pvc://examples/models/minilm"},
    "data": {
        "train": {"uri": f"{_DATA}/train.jsonl"},
        "evaluation": {"uri": f"{_DATA}/evaluation.jsonl"},
        "maxLength": 128,
    },
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"strategy": {"full": {}}, "training": {"epochs": 3, "learningRate": "5e-5"}},
    "adapter": {
        "strategy": {"adapter": {"type": "Bottleneck", "reductionFactor": 16}},
        "training": {"epochs": 3, "learningRate": "2e-3"},
    },
    "LoRA": {"strategy": {"adapter": {"type": "LoRA"}}, "training": {"epochs": 3, "learningRate": "2e-3"}},
}


def main() -> None:
    """Run what has no result yet and print the table."""
    parser = RUNS.parser(__doc__)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    options = RUNS.parse(parser)
    for seed in options.seeds:
        # The strategies take turns, so that a change of the machine's speed meets both.
        for name in options.strategies:
            variant = STRATEGIES[name]
            spec = {**_SPEC, **variant, "training": {**variant["training"], "seed": seed}}
            RUNS.job(f"{name}/{seed}", spec)
    print(table(RUNS.of_each(STRATEGIES)))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| strategy | accuracy, mean (each seed) | majority class | trained | CPU-s a run |",
        "|---|---|---|---|---|",
    ]
    for name, entries in runs.items():
        scores = mean_and_each((float(entry["result"]["after"]["accuracy"]) for entry in entries), digits=4)
        result = entries[0]["result"]
        cpu = statistics.mean(entry["cpu_seconds"] for entry in entries)
        majority = float(result["baseline"])
        lines.append(f"| {name} | {scores} | {majority:.3f} | {share_trained(result)} | {cpu:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
