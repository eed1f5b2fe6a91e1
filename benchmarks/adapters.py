"""Types of adapters beside full tuning on tweets; then movie reviews stacked on the tweets, whose own logits must stay.

Results are written after each run, and what is there is not run again.
Usage: python benchmarks/adapters.py [--again] [--seeds 1 2 3] [--parts types stack]
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from harness import ASSETS, ROOT, Runs, mean_and_each, share_trained
from transformers import AutoTokenizer

from finetune_trainer.adapters.modeling_adapters import AdaptedForSequenceClassification
from finetune_trainer.export.reload import logits_of

# Three epochs of 1,000 tweets are few steps, so the rates are above the defaults.
TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "full": ({"full": {}}, "5e-5"),
    "Houlsby": ({"adapter": {"type": "Bottleneck"}}, "2e-3"),
    "Pfeiffer": ({"adapter": {"type": "Bottleneck", "placement": "Pfeiffer"}}, "2e-3"),
    "LoRA": ({"adapter": {"type": "LoRA"}}, "2e-3"),
    "RSLoRA": ({"adapter": {"type": "RSLoRA"}}, "1e-3"),
    "DoRA": ({"adapter": {"type": "DoRA"}}, "2e-3"),
    "IA3": ({"adapter": {"type": "IA3"}}, "1e-2"),
}
STACK = ("tweets", "movies-on-tweets", "movies-alone")
STEPS = 94
RUNS = Runs("adapters")
_MADE = ROOT / "build" / "adapters"
_PROBES = 64


def job(domain: str, job_type: tuple[dict[str, Any], str], seed: int, **fields: Any) -> dict[str, Any]:
    """A job on tweets or movies; its type is a strategy and a learning rate."""
    strategy, rate = job_type
    data = f"pvc://examples/data/{domain}"
    return {
        "task": "TextClassification",
        "model": {"uri": "pvc://examples/models/minilm"},
        "data": {
            "train": {"uri": f"{data}/train.jsonl"},
            "evaluation": {"uri": f"{data}/evaluation.jsonl"},
            "maxLength": 64,
        },
        "strategy": strategy,
        "training": {"maxSteps": STEPS, "seed": seed, "learningRate": rate},
        "evaluation": {"everySteps": STEPS},
        **fields,
    }


def types(seed: int) -> None:
    """Every type on the tweets."""
    for name, job_type in TYPES.items():
        RUNS.job(f"{name}/{seed}", job("tweets", job_type, seed))


def stack(seed: int) -> None:
    """Movies on tweets, movies alone, and the tweets' logits by the outputs before and after."""
    bottleneck, rate = TYPES["Houlsby"]
    first, second = (_MADE / f"{name}-{seed}" for name in ("tweets", "movies"))
    uris = {path: f"pvc://made/{path.name}" for path in (first, second)}
    stacked = {"adapter": {**bottleneck["adapter"], "stackOn": [{"uri": uris[first]}]}}
    _MADE.mkdir(parents=True, exist_ok=True)
    volumes = {"made": _MADE}
    tweets = job("tweets", (bottleneck, rate), seed, output={"uri": uris[first]})
    movies = job("movies", (stacked, rate), seed, output={"uri": uris[second]})
    RUNS.job(f"tweets/{seed}", tweets, volumes, left=first)
    RUNS.job(f"movies-on-tweets/{seed}", movies, volumes, left=second)
    RUNS.job(f"movies-alone/{seed}", job("movies", (bottleneck, rate), seed))
    before, after = _logits(first), _logits(second)
    if not torch.equal(before, after):
        raise AssertionError(f"the tweets' logits changed by up to {(before - after).abs().max():g}")
    print(f"seed {seed}: the tweets' {before.numel()} logits are bit-identical", flush=True)


@torch.no_grad()
def _logits(directory: Path) -> torch.Tensor:
    """Logits of tweets by the tweets' adapter, the lowest of an exported model."""
    model = AdaptedForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    model.set_active(model.adapter_names[0])
    lines = (ASSETS / "data" / "tweets" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:_PROBES]
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return logits_of(model(**tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures of jobs as Markdown."""
    lines = ["| job | accuracy, mean (each seed) | trained | CPU-s a run |", "|---|---|---|---|"]
    for name, entries in runs.items():
        scores = mean_and_each((float(entry["result"]["after"]["accuracy"]) for entry in entries), digits=4)
        cpu = statistics.mean(entry["cpu_seconds"] for entry in entries)
        lines.append(f"| {name} | {scores} | {share_trained(entries[0]['result'])} | {cpu:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what has no result yet and print the tables."""
    parser = RUNS.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=("stack", "types"), default=["stack", "types"])
    options = RUNS.parse(parser)
    for seed in options.seeds:
        for part in options.parts:
            {"stack": stack, "types": types}[part](seed)
    print(table(RUNS.of_each(TYPES)), table(RUNS.of_each(STACK)), sep="\n\n")


if __name__ == "__main__":
    main()
