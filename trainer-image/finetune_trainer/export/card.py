"""The model card: what was tuned on what, how well, and how to load it."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.documents import write_document
from finetune_api.run import Run
from finetune_api.v1alpha1.status import Result
from finetune_api.values import finite_or_none

_LOADING = {
    "transformers": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(directory)
""",
    "transformers-remote-code": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

# The adapters' layers are in modeling_bottleneck.py beside the weights; reading them runs that file.
model = AutoModelForSequenceClassification.from_pretrained(directory, trust_remote_code=True)
""",
    "peft": """from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

# The directory holds the adapter and the labels; the base model is loaded from where it was.
adapter = PeftConfig.from_pretrained(directory)
base = AutoModelForSequenceClassification.from_pretrained(
    adapter.base_model_name_or_path, revision=adapter.revision, config=AutoConfig.from_pretrained(directory)
)
model = PeftModel.from_pretrained(base, directory)
""",
}


def model_card(
    run: Run, result: Result, labels: Sequence[str], data_report: Sequence[str], loader: str, difference: float
) -> str:
    """README.md of an exported model, in the form the Hugging Face hub reads."""
    spec = run.spec
    header = {
        "base_model": spec.model.uri.removeprefix("hf://") if spec.model.uri.startswith("hf://") else spec.model.uri,
        "library_name": "peft" if loader == "peft" else "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["finetune-operator", spec.strategy.name.lower()],
    }
    share = result.trainable_parameters / result.total_parameters
    return f"""---
{write_document(header)}---

# {run.name}

Tuned by FineTuneJob `{run.namespace}/{run.name}`: {spec.task}, strategy {spec.strategy.name}.

| | before | after |
|---|---|---|
{_metric_rows(result)}

- Always saying the most frequent class: {_number(result.baseline)}.
- Steps: {result.steps}{", stopped early" if result.stopped_early else ""}; time: {result.duration_seconds:.0f} s.
- Trained parameters: {result.trainable_parameters:,} of {result.total_parameters:,} ({share:.2%}).
- Reloaded in a fresh process: largest difference of a logit {difference:.2g}.
- Labels: {", ".join(labels[:20])}{", ..." if len(labels) > 20 else ""}.

## Data
{_lines(data_report)}

## Load it
```python
{_LOADING[loader]}tokenizer = AutoTokenizer.from_pretrained(directory)
```

## The job
```yaml
{write_document(spec.to_json())}```
"""


def _metric_rows(result: Result) -> str:
    return "\n".join(
        f"| {name} | {_number(result.before.get(name))} | {_number(value)} |" for name, value in result.after.items()
    )


def _lines(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _number(value: float | None) -> str:
    return "-" if finite_or_none(value) is None else f"{value:.4f}"
