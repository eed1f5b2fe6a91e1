"""The model card: what was tuned on what, how well, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.documents import write_document
from finetune_api.loading import lines_that_load, loader_of
from finetune_api.problems import printable
from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task
from finetune_api.v1alpha1.sources import ModelSource
from finetune_api.v1alpha1.status import Result, StrategyChoice
from finetune_api.values import finite_or_none
from finetune_trainer.tasks import Task as TaskData

_HUB = "hf://"
_PIPELINES = {
    Task.TEXT_CLASSIFICATION: "text-classification",
    Task.TEXT_GENERATION: "text-generation",
    Task.TOKEN_CLASSIFICATION: "token-classification",
    Task.QUESTION_ANSWERING: "question-answering",
}


def model_card(
    run: Run, result: Result, task: TaskData, difference: float, choice: StrategyChoice | None = None
) -> str:
    """README.md of an exported model, in the form the Hugging Face hub reads.

    `choice` says why the run has its strategy, where strategy.auto chose it.
    """
    spec, stored = run.spec, run.spec.to_json()
    header = _base_of_hub(spec.model) | {
        "library_name": "peft" if loader_of(stored) == "peft" else "transformers",
        "pipeline_tag": _PIPELINES[spec.task],
        "tags": ["finetune-operator", spec.strategy.name.lower()],
    }
    share = result.trainable_parameters / result.total_parameters
    return f"""---
{write_document(header)}---

# {printable(run.name)}

Tuned by FineTuneJob `{printable(f"{run.namespace}/{run.name}")}`: {spec.task}, strategy {spec.strategy.name}.
The base model is {_named(spec.model)}.

| | before | after |
|---|---|---|
{_metric_rows(result)}

{_notes(result, task.labels, choice)}\
- Steps: {result.steps}{", stopped early" if result.stopped_early else ""}; time: {result.duration_seconds:.0f} s.
- Trained parameters: {result.trainable_parameters:,} of {result.total_parameters:,} ({share:.2%}).
- Reloaded in a fresh process: largest difference of a logit {difference:.2g}.

## Data
{_lines(task.data_report)}

## Load it
```python
{lines_that_load(stored)}```

## The job
```yaml
{write_document(stored)}```
"""


def _base_of_hub(model: ModelSource) -> dict[str, str]:
    """The hub's own name of the base model; it refuses a card that has another there."""
    return {"base_model": model.uri.removeprefix(_HUB)} if model.uri.startswith(_HUB) else {}


def _named(model: ModelSource) -> str:
    """The base model in words."""
    revision = f", revision `{printable(model.revision)}`" if model.revision is not None else ""
    return f"`{printable(model.uri)}`{revision}"


def _notes(result: Result, labels: Sequence[str], choice: StrategyChoice | None) -> str:
    """Lines on what there is for some jobs only."""
    notes = [f"{choice.strategy} was chosen by strategy.auto: {choice.reason}."] if choice else []
    if result.baseline is not None:
        notes.append(f"{result.metric} without a model (always the most frequent answer): {_number(result.baseline)}.")
    if labels:
        notes.append(f"Labels: {printable(', '.join(labels[:20]))}{', ...' if len(labels) > 20 else ''}.")
    if (divergence := result.forgetting.get("klToBase")) is not None:
        notes.append(f"KL(tuned || base) on the evaluation rows: {_number(divergence)} nats a prediction.")
    if {"before", "after"} <= result.forgetting.keys():
        before, after = (_number(result.forgetting[when]) for when in ("before", "after"))
        notes.append(f"{result.metric} on the retention rows: {before} before, {after} after.")
    return "".join(f"- {note}\n" for note in notes)


def _metric_rows(result: Result) -> str:
    return "\n".join(
        f"| {name} | {_number(result.before.get(name))} | {_number(value)} |" for name, value in result.after.items()
    )


def _lines(items: Sequence[str]) -> str:
    return "\n".join(f"- {printable(item)}" for item in items)


def _number(value: float | None) -> str:
    return "-" if finite_or_none(value) is None else f"{value:.4f}"
