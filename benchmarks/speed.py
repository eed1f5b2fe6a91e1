"""How fast is full tuning beside Hugging Face's Trainer with its defaults? The same rows, model, epochs and batch size.

Usage: python benchmarks/speed.py [--pairs 3]
Both take turns. Seconds are of training alone: without start, evaluation and export.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import ASSETS, machine, run_job, write_results

_EPOCHS = 1
_LEARNING_RATE = "5e-5"
_DATA_SETS = ("tweets", "movies")


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    pairs = parser.parse_args().pairs
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in _DATA_SETS}
    for _ in range(pairs):
        for name in _DATA_SETS:
            figures[name].append({"ours": _ours(name), "hf_trainer": _reference(name)})
            print(name, figures[name][-1], flush=True)
    print(table(figures))
    print("written:", write_results("speed", {"machine": machine(), "epochs": _EPOCHS, "pairs": figures}))


def table(figures: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown: medians, and the ratio pair by pair."""
    lines = ["| rows | ours, s | Trainer, s | times faster, median (each pair) |", "|---|---|---|---|"]
    for name, pairs in figures.items():
        ratios = [pair["hf_trainer"]["seconds"] / pair["ours"]["seconds"] for pair in pairs]
        ours, reference = (statistics.median(pair[key]["seconds"] for pair in pairs) for key in ("ours", "hf_trainer"))
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {name} | {ours:.1f} | {reference:.1f} | {statistics.median(ratios):.2f} ({each}) |")
    return "\n".join(lines)


def _ours(name: str) -> dict[str, float]:
    data = f"pvc://examples/data/{name}"
    measured = run_job(
        {
            "task": "TextClassification",
            "model": {"uri": "pvc://examples/models/minilm"},
            "data": {
                "train": {"uri": f"{data}/train.jsonl"},
                "evaluation": {"uri": f"{data}/evaluation.jsonl"},
                "maxLength": 128,
            },
            "strategy": {"full": {}},
            "training": {"epochs": _EPOCHS, "learningRate": _LEARNING_RATE},
        },
        f"speed-{name}",
    )
    return {"seconds": measured.training_seconds, "accuracy": measured.result.after["accuracy"]}


def _reference(name: str) -> dict[str, float]:
    script = Path(__file__).with_name("hf_trainer.py")
    arguments = [str(ASSETS / "data" / name), str(ASSETS / "models" / "minilm"), str(_EPOCHS), _LEARNING_RATE]
    done = subprocess.run([sys.executable, str(script), *arguments], check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
