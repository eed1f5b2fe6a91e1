"""What does each strategy learn of a new domain, and what does it forget of those before? Four domains of sentiment.

MiniLM is fully tuned on tweets, product reviews and news. That model is then tuned on movie reviews by every strategy,
for as many steps, and judged on the movies and on the three others. Results are written after each run, and what is
there is not run again.

Usage: python benchmarks/forgetting.py [--seeds 1 2 3] [--strategies ...]
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from harness import ASSETS, ROOT, Runs, mean_and_each, share_trained

RUNS = Runs("forgetting")
BEFORE = ("tweets", "products", "news")
STEPS = 160
_DATA = "pvc://examples/data"
_MADE = ROOT / "build" / "forgetting"
_REPLAY = {"source": {"uri": "pvc://made/train.jsonl"}, "fraction": "0.2"}
FIRST: dict[str, Any] = {
    "task": "TextClassification",
    "model": {"uri": "pvc://examples/models/minilm"},
    "data": {
        "train": {"uri": "pvc://made/train.jsonl"},
        "evaluation": {"uri": "pvc://made/evaluation.jsonl"},
        "maxLength": 128,
    },
    "strategy": {"full": {}},
    "training": {"epochs": 3, "learningRate": "1e-4", "seed": 1},
    "output": {"uri": "pvc://made/first"},
}
SECOND: dict[str, dict[str, Any]] = {
    "full": {"strategy": {"full": {}}, "learningRate": "1e-4"},
    "full, a fifth of the rate": {"strategy": {"full": {}}, "learningRate": "2e-5"},
    "full, 4 of 6 layers frozen": {"strategy": {"full": {"frozenLayers": 4}}, "learningRate": "1e-4"},
    "full, L2 to the start": {"strategy": {"full": {"l2ToStart": "0.1"}}, "learningRate": "1e-4"},
    "full, a fifth replayed": {"strategy": {"full": {}}, "learningRate": "1e-4", "replay": _REPLAY},
    "bottleneck": {"strategy": {"adapter": {"type": "Bottleneck"}}, "learningRate": "2e-3"},
    "LoRA": {"strategy": {"adapter": {"type": "LoRA"}}, "learningRate": "1e-3"},
    "prompt": {"strategy": {"promptTuning": {}}},
    "prefix": {"strategy": {"promptTuning": {"type": "Prefix"}}},
    # The model before is its own successor's teacher, on the new texts alone (Li and Hoiem 2016).
    "distillation from itself": {
        "strategy": {"distillation": {"teacher": {"uri": "pvc://made/first"}, "response": {}, "taskWeight": "1"}},
        "learningRate": "1e-4",
    },
}


def write_rows() -> None:
    """The rows of the domains before, as one data set."""
    _MADE.mkdir(parents=True, exist_ok=True)
    for part in ("train", "evaluation"):
        texts = [(ASSETS / "data" / domain / f"{part}.jsonl").read_text(encoding="utf-8") for domain in BEFORE]
        (_MADE / f"{part}.jsonl").write_text("".join(texts), encoding="utf-8")


def job(name: str, seed: int) -> dict[str, Any]:
    """The second job of a strategy."""
    variant = SECOND[name]
    rate = {"learningRate": variant["learningRate"]} if "learningRate" in variant else {}
    replay = {"replay": variant["replay"]} if "replay" in variant else {}
    return {
        "task": "TextClassification",
        "model": {"uri": "pvc://made/first"},
        "data": {
            "train": {"uri": f"{_DATA}/movies/train.jsonl"},
            "evaluation": {"uri": f"{_DATA}/movies/evaluation.jsonl"},
            "maxLength": 128,
            **replay,
        },
        "strategy": variant["strategy"],
        "training": {"maxSteps": STEPS, "seed": seed, **rate},
        "evaluation": {
            "everySteps": STEPS,
            "retention": {"data": {"uri": "pvc://made/evaluation.jsonl"}, "maxDrop": "1"},
        },
    }


def main() -> None:
    """Tune the first model, run every strategy with every seed on it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--strategies", nargs="+", choices=SECOND, default=list(SECOND))
    options = parser.parse_args()
    volumes = {"made": _MADE}
    write_rows()
    RUNS.job("first/1", FIRST, volumes, left=_MADE / "first")
    for seed in options.seeds:
        for name in options.strategies:
            RUNS.job(f"{name}/{seed}", job(name, seed), volumes)
    print(table(RUNS.of_each(SECOND)))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown: means over seeds."""
    lines = [
        "| strategy | movies before | after (each seed) | others before | after (each seed) | KL to base | trained |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entries in runs.items():
        results = [entry["result"] for entry in entries]
        first = results[0]
        learnt = mean_and_each(float(result["after"]["accuracy"]) for result in results)
        kept = mean_and_each(float(result["forgetting"]["after"]) for result in results)
        distance = statistics.mean(float(result["forgetting"]["klToBase"]) for result in results)
        lines.append(
            f"| {name} | {float(first['before']['accuracy']):.3f} | {learnt} "
            f"| {float(first['forgetting']['before']):.3f} | {kept} | {distance:.2f} | {share_trained(first)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
