"""What does a small model gain from a teacher? Few labels with a pool of texts, and labels for everything.

The teacher is MiniLM (6 layers), fully tuned on 2,000 labels. The student is 3 of the same base's layers. It learns
for as many steps with the teacher as without. Results are written after each run, and what is there is not run again.

Usage: python benchmarks/distillation.py [--data trec movies] [--again] [--seeds 1 2 3] [--only few-response ...]
"""

from __future__ import annotations

import json
import random
import statistics
from typing import Any

from harness import ASSETS, ROOT, Runs

NUM_TEACHER_LABELS = 2000
NUM_FEW_LABELS = 200
STUDENT_LAYERS = [0, 2, 5]
STEPS = 300
LEARNING_RATE = "5e-4"
LEARNING_RATE_ALONE = "2e-4"
"""The better one without a teacher: with the other, few labels are overfitted."""
RUNS = Runs("distillation")
_DATA = ROOT / "build" / "distillation"

RESPONSE: dict[str, Any] = {"response": {"temperature": "2.0"}}
FEATURE: dict[str, Any] = {"feature": {"hidden": "MSE"}}
# Ten times the weights of the paper's ratio: smooth L1 of relative distances is a small number.
RELATION: dict[str, Any] = {"relation": {"weight": "10", "distance": "1", "angle": "2"}}
# A student without a teacher gives its answers no weight.
ALONE: dict[str, Any] = {"response": {"weight": "0"}, "taskWeight": "1"}
# Labels, unlabelled texts, and what is learnt.
VARIANTS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "few": ("few", None, ALONE),
    "few-response": ("few", "pool", {**RESPONSE, "taskWeight": "0"}),
    "few-together": ("few", "pool", {**RESPONSE, **FEATURE, **RELATION, "taskWeight": "0.5"}),
    # Neither teaches the head anything: half of the steps are for that, on the labels.
    "few-feature": ("few", "pool", {**FEATURE, "taskWeight": "1", "taskSteps": STEPS // 2}),
    "few-relation": ("few", "pool", {**RELATION, "taskWeight": "1", "taskSteps": STEPS // 2}),
    "few-response-labels": ("few", "pool", {**RESPONSE, "taskWeight": "0.5"}),
    "all": ("teacher", None, ALONE),
    "all-response": ("teacher", None, {**RESPONSE, "taskWeight": "0.5"}),
}


def main() -> None:
    """Run what has no result yet and print the tables."""
    parser = RUNS.parser(__doc__)
    parser.add_argument("--data", nargs="+", default=["trec", "movies"])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = RUNS.parse(parser)
    for data in options.data:
        write_rows(data)
        run("teacher", data, 0, {"strategy": {"full": {}}, "training": {"epochs": 3, "learningRate": "5e-5"}})
        for seed in options.seeds:
            for variant in options.only:
                run(variant, data, seed, student(variant, data))
        print(table(data, RUNS.known()), flush=True)


def write_rows(data: str) -> None:
    """The rows of the teacher, a few of them, and the texts of all others; the same ones every time."""
    lines = (ASSETS / "data" / data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    directory = _DATA / data
    directory.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps({"text": json.loads(line)["text"]}) for line in lines[NUM_FEW_LABELS:]]
    parts = {"teacher": lines[:NUM_TEACHER_LABELS], "few": lines[:NUM_FEW_LABELS], "pool": texts}
    for name, rows in parts.items():
        (directory / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def student(variant: str, data: str) -> dict[str, Any]:
    """The job of a student."""
    _, _, terms = VARIANTS[variant]
    return {
        "strategy": {
            "distillation": {
                "teacher": {"uri": f"pvc://made/{data}/teacher-model"},
                "studentLayers": STUDENT_LAYERS,
                **terms,
            }
        },
        "training": {"maxSteps": STEPS, "learningRate": LEARNING_RATE_ALONE if terms == ALONE else LEARNING_RATE},
        "evaluation": {"everySteps": 10 * STEPS},
    }


def run(variant: str, data: str, seed: int, job: dict[str, Any]) -> None:
    """Run a job, unless it was."""
    labels, pool, _ = VARIANTS.get(variant, ("teacher", None, {}))
    spec = {
        "task": "TextClassification",
        "model": {"uri": "pvc://examples/models/minilm"},
        "data": {
            "train": {"uri": f"pvc://made/{data}/{labels}.jsonl"},
            "evaluation": {"uri": f"pvc://examples/data/{data}/evaluation.jsonl"},
            "maxLength": 128,
            **({"unlabeled": {"uri": f"pvc://made/{data}/{pool}.jsonl"}} if pool else {}),
        },
        **job,
        "training": {**job["training"], "seed": seed},
    }
    if variant == "teacher":
        spec["output"] = {"uri": f"pvc://made/{data}/teacher-model"}
    left = _DATA / data / "teacher-model" if variant == "teacher" else None
    RUNS.job(f"{data}/{variant}/{seed}", spec, {"made": _DATA}, left)


def table(data: str, runs: dict[str, Any]) -> str:
    """The figures of one data set as Markdown; gains are over the student without a teacher in as many steps."""
    scores: dict[str, list[float]] = {}
    for name, entry in runs.items():
        of_data, variant, _ = name.split("/")
        if of_data == data:
            scores.setdefault(variant, []).append(float(entry["result"]["after"]["accuracy"]))
    teacher = statistics.mean(scores["teacher"])
    lines = [
        f"{data}: the teacher's accuracy is {teacher:.3f}",
        "",
        "| student | accuracy, mean (each seed) | gain, points | of the teacher's |",
        "|---|---|---|---|",
    ]
    for variant, each in scores.items():
        if variant == "teacher":
            continue
        mean, alone = statistics.mean(each), scores.get(variant.split("-")[0], [])
        gain = f"{100 * (mean - statistics.mean(alone)):+.1f}" if alone and "-" in variant else ""
        seeds = ", ".join(f"{score:.3f}" for score in each)
        lines.append(f"| {variant} | {mean:.3f} ({seeds}) | {gain} | {mean / teacher:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
