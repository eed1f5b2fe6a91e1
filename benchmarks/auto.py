"""From how many rows on is full tuning ahead of adapters, both with the defaults that strategy.auto gives them?

Usage: python benchmarks/auto.py [--again] [--seeds 1 2 3] [--sizes trec/1000 ...]
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import ASSETS, Runs, mean_and_each

RUNS = Runs("auto")
SIZES = ("trec/500", "trec/1000", "trec/2500", "trec/4876", "movies/2500", "tweets/1000")
STRATEGIES: dict[str, dict[str, Any]] = {"full": {"full": {}}, "bottleneck": {"adapter": {"type": "Bottleneck"}}}


def main() -> None:
    """Run what has no result yet and print the table."""
    parser = RUNS.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options = RUNS.parse(parser)
    with tempfile.TemporaryDirectory() as scratch:
        for seed, size, name in itertools.product(options.seeds, options.sizes, STRATEGIES):
            domain, count = size.split("/")
            with (ASSETS / f"data/{domain}/train.jsonl").open(encoding="utf-8") as lines:
                Path(scratch, "train.jsonl").write_text("".join(itertools.islice(lines, int(count))), encoding="utf-8")
            RUNS.job(f"{size}/{name}/{seed}", job(domain, name, seed), volumes={"made": Path(scratch)})
    print(table(RUNS.of_each(f"{size}/{name}" for size in options.sizes for name in STRATEGIES)))


def job(domain: str, name: str, seed: int) -> dict[str, Any]:
    """The spec: everything that can be is left to its default."""
    return {
        "task": "TextClassification",
        "model": {"uri": "pvc://examples/models/minilm"},
        "data": {
            "train": {"uri": "pvc://made/train.jsonl"},
            "evaluation": {"uri": f"pvc://examples/data/{domain}/evaluation.jsonl"},
            "maxLength": 128,
        },
        "strategy": STRATEGIES[name],
        "training": {"seed": seed},
        "evaluation": {"everySteps": 10_000},
    }


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown."""
    lines = ["| rows | strategy | accuracy, mean (each seed) | CPU-s a run |", "|---|---|---|---|"]
    for name, entries in runs.items():
        size, _, strategy = name.rpartition("/")
        scores = mean_and_each(float(entry["result"]["after"]["accuracy"]) for entry in entries)
        cpu = statistics.mean(entry["cpu_seconds"] for entry in entries)
        lines.append(f"| {size} | {strategy} | {scores} | {cpu:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
