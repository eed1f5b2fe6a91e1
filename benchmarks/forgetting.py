"""What does each strategy learn of a second domain, and what does it forget of the first? Tweets, then movie reviews.

MiniLM is fully tuned on tweets. That model is then tuned further on movie reviews by every strategy, for as many steps,
and judged on both. Usage: python benchmarks/forgetting.py [--seeds 1 2 3] [--strategies ...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import as_json, machine, run_job, write_results

_DATA = "pvc://examples/data"
_REPLAY = {"source": {"uri": f"{_DATA}/tweets/train.jsonl"}, "fraction": "0.2"}
_FIRST: dict[str, Any] = {
    "task": "TextClassification",
    "model": {"uri": "pvc://examples/models/minilm"},
    "data": {
        "train": {"uri": f"{_DATA}/tweets/train.jsonl"},
        "evaluation": {"uri": f"{_DATA}/tweets/evaluation.jsonl"},
        "maxLength": 128,
    },
    "strategy": {"full": {}},
    "training": {"epochs": 2, "learningRate": "5e-5", "seed": 1},
}
SECOND: dict[str, dict[str, Any]] = {
    "full": {"strategy": {"full": {}}, "learningRate": "5e-5"},
    "full, 4 of 6 layers frozen": {"strategy": {"full": {"frozenLayers": 4}}, "learningRate": "5e-5"},
    "full, L2 to the start": {"strategy": {"full": {"l2ToStart": "0.1"}}, "learningRate": "5e-5"},
    "full, a fifth replayed": {"strategy": {"full": {}}, "learningRate": "5e-5", "replay": _REPLAY},
    "bottleneck": {"strategy": {"adapter": {"type": "Bottleneck"}}, "learningRate": "2e-3"},
    "LoRA": {"strategy": {"adapter": {"type": "LoRA"}}, "learningRate": "1e-3"},
    "prompt": {"strategy": {"promptTuning": {}}},
}
_STEPS = 60


def job(name: str, seed: int) -> dict[str, Any]:
    """The second job of a strategy."""
    variant = SECOND[name]
    rate = {"learningRate": variant["learningRate"]} if "learningRate" in variant else {}
    replay = {"replay": variant["replay"]} if "replay" in variant else {}
    return {
        "task": "TextClassification",
        "model": {"uri": "pvc://first/model"},
        "data": {
            "train": {"uri": f"{_DATA}/movies/train.jsonl"},
            "evaluation": {"uri": f"{_DATA}/movies/evaluation.jsonl"},
            "maxLength": 128,
            **replay,
        },
        "strategy": variant["strategy"],
        "training": {"maxSteps": _STEPS, "seed": seed, **rate},
        "evaluation": {
            "everySteps": _STEPS,
            "retention": {"data": {"uri": f"{_DATA}/tweets/evaluation.jsonl"}, "maxDrop": "1"},
        },
    }


def main() -> None:
    """Tune the first model, run every strategy with every seed on it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--strategies", nargs="+", choices=SECOND, default=list(SECOND))
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.strategies}
    with tempfile.TemporaryDirectory() as scratch:
        volumes = {"first": Path(scratch)}
        first = run_job({**_FIRST, "output": {"uri": "pvc://first/model"}}, "first", volumes)
        for seed in options.seeds:
            for name in options.strategies:
                measured = run_job(job(name, seed), "second", volumes)
                runs[name].append({"seed": seed, **as_json(measured)})
                after, lost = measured.result.after, measured.result.forgetting
                print(f"{name}, seed {seed}: {after['accuracy']:.3f}; tweets {lost['after']:.3f}", flush=True)
    print(table(runs))
    figures = {"machine": machine(), "first": as_json(first), "jobs": SECOND, "runs": runs}
    print("written:", write_results("forgetting", figures))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown: means over seeds."""
    lines = [
        "| strategy | movies before | after (each seed) | tweets before | after (each seed) | KL to base | trained |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entries in runs.items():
        results = [entry["result"] for entry in entries]
        learnt = [float(result["after"]["accuracy"]) for result in results]
        kept = [float(result["forgetting"]["after"]) for result in results]
        distance = statistics.mean(float(result["forgetting"]["klToBase"]) for result in results)
        first = results[0]
        share = first["trainableParameters"] / first["totalParameters"]
        lines.append(
            f"| {name} | {float(first['before']['accuracy']):.3f} | {_mean(learnt)} "
            f"| {float(first['forgetting']['before']):.3f} | {_mean(kept)} | {distance:.2f} | {share:.2%} |"
        )
    return "\n".join(lines)


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
