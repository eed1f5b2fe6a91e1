"""Do bottleneck adapters come close to full tuning? Movie reviews, MiniLM, three seeds each.

Usage: python benchmarks/adapter_vs_full.py [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from harness import as_json, machine, run_job, write_results

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
}


def main() -> None:
    """Run every strategy with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.strategies}
    for seed in options.seeds:
        # The strategies take turns, so that a change of the machine's speed meets both.
        for name in options.strategies:
            variant = STRATEGIES[name]
            spec = {**_SPEC, **variant, "training": {**variant["training"], "seed": seed}}
            measured = run_job(spec, f"reviews-{name}")
            runs[name].append({"seed": seed, **as_json(measured)})
            print(
                f"{name} seed {seed}: {measured.result.after['accuracy']:.4f} ({measured.cpu_seconds:.0f} CPU-s)",
                flush=True,
            )
    print(table(runs))
    print("written:", write_results("adapter_vs_full", {"machine": machine(), "jobs": STRATEGIES, "runs": runs}))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| strategy | accuracy, mean (each seed) | majority class | trained | CPU-s a run |",
        "|---|---|---|---|---|",
    ]
    for name, entries in runs.items():
        scores = [float(entry["result"]["after"]["accuracy"]) for entry in entries]
        result = entries[0]["result"]
        share = result["trainableParameters"] / result["totalParameters"]
        cpu = statistics.mean(entry["cpu_seconds"] for entry in entries)
        each = ", ".join(f"{score:.3f}" for score in scores)
        mean, majority = statistics.mean(scores), float(result["baseline"])
        lines.append(f"| {name} | {mean:.4f} ({each}) | {majority:.3f} | {share:.2%} | {cpu:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
