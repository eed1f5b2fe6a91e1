"""Does a soft prompt beat a head on a frozen model, and which start is best? Tweets, MiniLM, equal steps, three seeds.

Results are written after each run, and what is there is not run again.

Usage: python benchmarks/prompt_tuning.py [--again] [--seeds 1 2 3] [--only head vocabulary ...]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from harness import ASSETS, Runs, mean_and_each

from finetune_api.run import Run
from finetune_trainer import device as devices
from finetune_trainer.__main__ import quiet_libraries
from finetune_trainer.checkpoint import CheckpointStore
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.models import Loaded, num_parameters
from finetune_trainer.optim import Trained
from finetune_trainer.progress import ProgressLog
from finetune_trainer.prompts.modeling_prompt import PromptedModel
from finetune_trainer.stop import StopFlag
from finetune_trainer.strategies import Tuning, prepare
from finetune_trainer.tasks import make_task

STEPS = 768
BATCH_SIZE = 16
NUM_VIRTUAL_TOKENS = 10
# A head alone learns too little at the rate that suits it beside a prompt; the baseline gets its best of 1e-3 and 1e-2.
HEAD_ALONE_RATE = "1e-2"
# How Lester et al. 2021 (section 3.2) draw theirs; ours have the spread of the model's embeddings.
_PUBLISHED_SPREAD = 0.5
RUNS = Runs("prompt_tuning")
_MODEL = ASSETS / "models" / "minilm"
VARIANTS: dict[str, dict[str, Any] | None] = {
    "head": None,
    "random": {"initialization": "Random"},
    "random, +-0.5": {"initialization": "Random"},
    "vocabulary": {"initialization": "Vocabulary"},
    "labels": {"initialization": "Labels"},
    "p-tuning": {"type": "PTuning"},
    "prefix": {"type": "Prefix"},
}


def main() -> None:
    """Run what has no result yet and print the table."""
    parser = RUNS.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = RUNS.parse(parser)
    quiet_libraries()
    devices.set_threads()
    for seed in options.seeds:
        for variant in options.only:
            name = f"{variant}/{seed}"
            if not RUNS.is_made(name):
                result = train(variant, seed)
                RUNS.put(name, result)
                print(f"{name}: {result['after']['accuracy']:.3f} ({result['cpu_seconds']} CPU-s)", flush=True)
    print(table(RUNS.of_each(VARIANTS)))


def train(variant: str, seed: int) -> dict[str, Any]:
    """One run without its export: the evaluations before and after, and what it took."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        run = make_run(VARIANTS[variant], seed, Path(scratch))
        task, progress = make_task(run, _MODEL), ProgressLog(Path(scratch, "progress.jsonl"))
        torch.manual_seed(seed)
        loaded = task.load_model()
        if VARIANTS[variant] is None:
            tuning = head_alone(loaded)
        else:
            tuning = prepare(run, task, loaded, _MODEL, torch.device("cpu"), progress.note)
        if variant == "random, +-0.5":
            with torch.no_grad():
                prompt_PE = cast("PromptedModel", tuning.model).prompt()
                prompt_PE.uniform_(-_PUBLISHED_SPREAD, _PUBLISHED_SPREAD)
        checkpoints = CheckpointStore(Path(scratch, "checkpoints"), "benchmark", 1, progress.note)
        loop = TrainingLoop(run.spec, task, tuning, checkpoints, progress, StopFlag(), torch.device("cpu"))
        state = loop.run()
    return {
        "learning_rate": loop.learning_rate,
        "trained": num_parameters(entry.parameter for entry in tuning.trained.values()),
        "baseline": task.baseline,
        "before": state.before,
        "after": state.last,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def make_run(prompt: dict[str, Any] | None, seed: int, work_dir: Path) -> Run:
    """The job of a variant; of the head alone, one whose strategy is not looked at."""
    data = {name: {"uri": f"file://{ASSETS}/data/tweets/{name}.jsonl"} for name in ("train", "evaluation")}
    rate = {} if prompt is not None else {"learningRate": HEAD_ALONE_RATE, "headLearningRate": HEAD_ALONE_RATE}
    spec = {
        "task": "TextClassification",
        "model": {"uri": f"file://{_MODEL}"},
        "data": {**data, "maxLength": 128},
        "strategy": {"promptTuning": {"numVirtualTokens": NUM_VIRTUAL_TOKENS, **(prompt or {})}},
        "training": {"maxSteps": STEPS, "batchSize": BATCH_SIZE, "precision": "BF16", "seed": seed, **rate},
        "evaluation": {"everySteps": STEPS},
        "output": {"uri": "file://out"},
    }
    content = {"name": "tweets", "uid": "benchmark", "spec": spec, "workDir": str(work_dir), "manifestDir": "/"}
    return Run.model_validate_json(json.dumps(content))


def head_alone(loaded: Loaded) -> Tuning:
    """The model as it is, and its head trained."""
    loaded.model.requires_grad_(False)
    head = {name: one.requires_grad_(True) for name, one in loaded.model.named_parameters() if name in loaded.head}
    trained = {name: Trained(parameter, is_head=True) for name, parameter in head.items()}
    return Tuning(loaded.model, trained, float(HEAD_ALONE_RATE), lambda _: None, "transformers")


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as Markdown."""
    lines = ["| start | accuracy, mean (each seed) | loss | trained numbers | rate |", "|---|---|---|---|---|"]
    for variant, entries in runs.items():
        scores = mean_and_each(entry["after"]["accuracy"] for entry in entries)
        loss = statistics.mean(entry["after"]["loss"] for entry in entries)
        first = entries[0]
        lines.append(f"| {variant} | {scores} | {loss:.3f} | {first['trained']:,} | {first['learning_rate']:g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
