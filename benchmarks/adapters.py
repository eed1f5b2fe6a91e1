"""Types of adapters beside full tuning on tweets; then movie reviews stacked on the tweets, whose own logits must stay.

Usage: python benchmarks/adapters.py [--seeds 1 2 3] [--parts types stack]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import ASSETS, Measured, as_json, machine, run_job, write_results
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
STEPS = 94
_PROBES = 64


def run(domain: str, job_type: tuple[dict[str, Any], str], seed: int, name: str, **fields: Any) -> Measured:
    """One job on tweets or movies; its type is a strategy and a learning rate."""
    strategy, rate = job_type
    data = f"pvc://examples/data/{domain}"
    job: dict[str, Any] = {
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
    return run_job(job, name)


def types(seed: int) -> dict[str, dict[str, Any]]:
    """Every type on the tweets."""
    runs = {}
    for number, (name, job_type) in enumerate(TYPES.items()):
        measured = run("tweets", job_type, seed, f"tweets-{number}")
        runs[name] = as_json(measured)
        print(f"{name} seed {seed}: {measured.result.after['accuracy']:.4f}", flush=True)
    return runs


def stack(seed: int) -> dict[str, Any]:
    """Movies on tweets, movies alone, and the tweets' logits by the outputs before and after."""
    with tempfile.TemporaryDirectory() as scratch:
        tweets, movies = Path(scratch, "tweets"), Path(scratch, "movies")
        first = run("tweets", TYPES["Houlsby"], seed, "tweets", output={"uri": f"file://{tweets}"})
        adapter = {"adapter": {"type": "Bottleneck", "stackOn": [{"uri": f"file://{tweets}"}]}}
        second = run("movies", (adapter, TYPES["Houlsby"][1]), seed, "movies", output={"uri": f"file://{movies}"})
        alone = run("movies", TYPES["Houlsby"], seed, "movies-alone")
        before, after = _logits(tweets, "tweets"), _logits(movies, "tweets")
    if not torch.equal(before, after):
        raise AssertionError(f"the tweets' logits changed by up to {(before - after).abs().max():g}")
    named = {"tweets": first, "movies on tweets": second, "movies alone": alone}
    scores = ", ".join(f"{name} {one.result.after['accuracy']:.4f}" for name, one in named.items())
    print(f"seed {seed}: {scores}; the tweets' {before.numel()} logits are bit-identical", flush=True)
    return {name: as_json(one) for name, one in named.items()} | {"tweets' logits": f"{before.numel()} bit-identical"}


@torch.no_grad()
def _logits(directory: Path, adapter: str) -> torch.Tensor:
    """Logits of tweets by an adapter in an exported model."""
    model = AdaptedForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    model.set_active(adapter)
    lines = (ASSETS / "data" / "tweets" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()[:_PROBES]
    texts = [json.loads(line)["text"] for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return logits_of(model(**tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")))


def table(runs: list[dict[str, dict[str, Any]]]) -> str:
    """The figures of jobs as Markdown, a row a job, a run a seed."""
    lines = ["| job | accuracy, mean (each seed) | trained | CPU-s a run |", "|---|---|---|---|"]
    for name in (name for name, one in runs[0].items() if "result" in one):
        results = [one[name]["result"] for one in runs]
        scores = [float(result["after"]["accuracy"]) for result in results]
        share = results[0]["trainableParameters"] / results[0]["totalParameters"]
        cpu = statistics.mean(one[name]["cpu_seconds"] for one in runs)
        each = ", ".join(f"{score:.3f}" for score in scores)
        lines.append(f"| {name} | {statistics.mean(scores):.4f} ({each}) | {share:.2%} | {cpu:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run both parts with every seed and print the figures; what is done is written after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parts", nargs="+", choices=("stack", "types"), default=["stack", "types"])
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "jobs": TYPES, "steps": STEPS, "stack": [], "types": []}
    for seed in options.seeds:
        for part in options.parts:
            figures[part].append({"stack": stack, "types": types}[part](seed))
            print(table(figures[part]))
            print("written:", write_results("adapters", figures), flush=True)


if __name__ == "__main__":
    main()
