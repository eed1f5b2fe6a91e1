"""What does each strategy learn of a new domain, and what does it forget of those before? Four domains of sentiment.

MiniLM is fully tuned on tweets, product reviews and news. That model is then tuned on movie reviews by every strategy,
for as many steps, and judged on the movies and on the three others. Results are written after each run, and what is
there is not run again.

Usage: python benchmarks/forgetting.py [--again] [--seeds 1 2 3] [--strategies ...]
       python benchmarks/forgetting.py --table        # what stands in docs/forgetting.md, of the runs that are there
"""

from __future__ import annotations

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
    parser = RUNS.parser(__doc__)
    parser.add_argument("--strategies", nargs="+", choices=SECOND, default=list(SECOND))
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of the runs so far")
    options = RUNS.parse(parser)
    if options.table:
        print(table(RUNS.of_each(SECOND)))
        return
    volumes = {"made": _MADE}
    write_rows()
    RUNS.job("first/1", FIRST, volumes, left=_MADE / "first")
    for seed in options.seeds:
        for name in options.strategies:
            RUNS.job(f"{name}/{seed}", job(name, seed), volumes)
    print(table(RUNS.of_each(SECOND)))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown: means over seeds, and each seed's where they differ."""
    lines = [
        "| strategy | movies before | after (each seed) | others before | after (each seed) | KL to base | trained |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entries in runs.items():
        results = [entry["result"] for entry in entries]
        learnt, kept = [r["after"]["accuracy"] for r in results], [r["forgetting"]["after"] for r in results]
        unlearnt, known = [r["before"]["accuracy"] for r in results], [r["forgetting"]["before"] for r in results]
        distance = statistics.mean(float(result["forgetting"]["klToBase"]) for result in results)
        lines.append(
            f"| {name} | {_start(unlearnt)} | {mean_and_each(map(float, learnt))} "
            f"| {_start(known)} | {mean_and_each(map(float, kept))} | {distance:.2f} | {share_trained(results[0])} |"
        )
    return "\n".join(lines)


def _start(values: list[str]) -> str:
    """What the runs began at: one figure, unless it depends on the seed."""
    text = mean_and_each(map(float, values))
    return text if len({f"{float(value):.3f}" for value in values}) > 1 else text.partition(" ")[0]


if __name__ == "__main__":
    main()
