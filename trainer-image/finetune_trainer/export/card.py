"""The model card: what was tuned on what, how well, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.documents import write_document
from finetune_api.problems import printable
from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task
from finetune_api.v1alpha1.sources import ModelSource
from finetune_api.v1alpha1.status import Result, StrategyChoice
from finetune_api.values import finite_or_none
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task as TaskData

_HUB = "hf://"
_PIPELINES = {
    Task.TEXT_CLASSIFICATION: "text-classification",
    Task.TEXT_GENERATION: "text-generation",
    Task.TOKEN_CLASSIFICATION: "token-classification",
    Task.QUESTION_ANSWERING: "question-answering",
}
_LOADING = {
    "transformers": """from transformers import MODEL_CLASS, AutoTokenizer

model = MODEL_CLASS.from_pretrained(directory)
""",
    "transformers-remote-code": """from transformers import MODEL_CLASS, AutoTokenizer

# The new layers are in the file modeling_*.py beside the weights; loading runs that file.
model = MODEL_CLASS.from_pretrained(directory, trust_remote_code=True)
""",
}
_OF_PEFT = """from peft import {imports}
from transformers import AutoConfig, {bits}MODEL_CLASS, AutoTokenizer

# The directory holds what was trained and the config; the base model is loaded from {place}.
{before}base = MODEL_CLASS.from_pretrained(
    {arguments}
)
model = PeftModel.from_pretrained(base, directory)
"""
_IN_4_BITS = "# In 4 bits, as it was trained on; in others its answers are slightly different.\n"
_OTHER_LABELS = (
    "ignore_mismatched_sizes=True,  # of an output layer for other labels, in place of which the directory has its own"
)

_STACKED = """# An earlier adapter with its own head, as its job left it: model.set_active(one of model.adapter_names)
"""

_GENERATING = """
from transformers import GenerationConfig

# Where the texts that were learnt ended: model.generate(..., eos_token_id=ends)
ends = GenerationConfig.from_pretrained(directory).eos_token_id
"""


def model_card(
    run: Run, result: Result, task: TaskData, tuning: Tuning, difference: float, choice: StrategyChoice | None = None
) -> str:
    """README.md of an exported model, in the form the Hugging Face hub reads.

    `choice` says why the run has its strategy, where strategy.auto chose it.
    """
    spec = run.spec
    header = _base_of_hub(spec.model) | {
        "library_name": "peft" if tuning.loader == "peft" else "transformers",
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
{_loading(tuning, task.model_class, spec.model.uri)}tokenizer = AutoTokenizer.from_pretrained(directory)
{_STACKED if spec.strategy.adapter and spec.strategy.adapter.stack_on else ""}\
{_GENERATING if spec.task == Task.TEXT_GENERATION else ""}```

## The job
```yaml
{write_document(spec.to_json())}```
"""


def _base_of_hub(model: ModelSource) -> dict[str, str]:
    """The hub's own name of the base model; it refuses a card that has another there."""
    return {"base_model": model.uri.removeprefix(_HUB)} if model.uri.startswith(_HUB) else {}


def _named(model: ModelSource) -> str:
    """The base model in words."""
    revision = f", revision `{printable(model.revision)}`" if model.revision is not None else ""
    return f"`{printable(model.uri)}`{revision}"


def _loading(tuning: Tuning, model_class: str, base_uri: str) -> str:
    """The lines that load the model."""
    lines = _lines_of_peft(tuning, base_uri) if tuning.loader == "peft" else _LOADING[tuning.loader]
    return lines.replace("MODEL_CLASS", model_class)


def _lines_of_peft(tuning: Tuning, base_uri: str) -> str:
    """Those of a base model and what peft puts on it; a base model in an object store has to be copied first."""
    imports, place = ["PeftConfig", "PeftModel"], "where it was"
    before = "adapter = PeftConfig.from_pretrained(directory)\n"
    base = ["adapter.base_model_name_or_path", "revision=adapter.revision"]
    if base_uri.startswith("s3://"):
        imports, place, before = ["PeftModel"], f"a copy of {printable(base_uri)}", ""
        base = ["base_directory"]
    arguments = [f"{each}," for each in (*base, "config=AutoConfig.from_pretrained(directory)")]
    if tuning.base_settings is not None:
        settings = "".join(f"    {name}={value!r},\n" for name, value in tuning.base_settings.items())
        before += f"{_IN_4_BITS}bits = BitsAndBytesConfig(\n{settings})\n"
        arguments.append("quantization_config=bits,")
    return _OF_PEFT.format(
        imports=", ".join(imports),
        bits="" if tuning.base_settings is None else "BitsAndBytesConfig, ",
        place=place,
        before=before,
        arguments="\n    ".join([*arguments, _OTHER_LABELS]),
    )


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
