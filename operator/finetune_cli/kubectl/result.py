"""`kubectl finetune result`: what tuning did, and how to load the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune_api.v1alpha1.job import Task
from finetune_api.v1alpha1.status import Result
from finetune_cli.display import duration, number
from finetune_cli.kubectl.cluster import Cluster, ClusterProblem
from finetune_cli.kubectl.facts import Facts
from finetune_cli.text import add_row, say

_MODEL_CLASSES = {
    Task.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TEXT_GENERATION: "AutoModelForCausalLM",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
}


def result(cluster: Cluster, namespace: str, name: str, console: Console) -> int:
    """Print it; returns 0. Raises ClusterProblem when there is no result yet, or never will be."""
    facts = Facts(cluster.job(namespace, name))
    found = facts.status.result
    if found is None:
        raise ClusterProblem(_why_none(facts))
    say(console, f"{namespace}/{name}: {facts.spec.get('task')}, strategy {facts.status.strategy}\n")
    console.print(_metrics(found))
    share = found.trainable_parameters / found.total_parameters if found.total_parameters else 0
    steps = f"{found.steps}{' (stopped early)' if found.stopped_early else ''}"
    say(console, f"\n{found.trainable_parameters:,} of {found.total_parameters:,} parameters trained ({share:.2%}), "
         f"{steps} steps in {duration(round(found.duration_seconds))}")  # fmt: skip
    say(console, f"Model   {found.uri}\n        {found.digest}\n\n{how_to_load(facts.trained_spec, found.uri)}")
    return 0


def _why_none(facts: Facts) -> str:
    if facts.has_ended:
        reason, message = facts.cause
        return f"{facts.name} has no result: {facts.phase}, {reason}: {message}"
    progress = facts.status.progress
    far = f", step {progress.step} of {progress.total_steps}" if progress else ""
    return f"{facts.name} has no result yet: {facts.state}{far}; wait for it with: " + (
        f"kubectl finetune watch {facts.name} -n {facts.namespace}"
    )


def _metrics(found: Result) -> Table:
    """Before and after, metric by metric; the one that decides first. What was forgotten comes last."""
    table = Table()
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    names = sorted({*found.before, *found.after}, key=lambda name: (name != found.metric, name))
    rows = [(name, found.before.get(name), found.after.get(name)) for name in names]
    if "before" in found.forgetting or "after" in found.forgetting:
        kept = (found.forgetting.get("before"), found.forgetting.get("after"))
        rows.append((f"{found.metric} on the retention rows", *kept))
    for name, before, after in rows:
        change = f"{after - before:+.4f}" if before is not None and after is not None else ""
        add_row(table, name, number(before), number(after), change, style="bold" if name == found.metric else "")
    if found.baseline is not None:
        add_row(table, f"{found.metric} without a model", number(found.baseline), "", "")
    if (divergence := found.forgetting.get("klToBase")) is not None and "klToBase" not in names:
        add_row(table, "KL(tuned, base), nats a prediction", "", number(divergence), "")
    return table


def how_to_load(spec: Mapping[str, Any], uri: str) -> str:
    """Where the files are, and the lines of Python that load them."""
    scheme, _, rest = uri.partition("://")
    claim, _, path = rest.partition("/")
    where = f'"/{path}"'.replace("//", "/")
    place = {
        "pvc": f"Mount the claim {claim} in a pod, say at /models; the model is the folder /models/{path}.\n",
        "s3": f"Copy it: aws s3 cp --recursive {uri} tuned\n",
        "hf": f"It is on the Hugging Face hub as {rest}.\n",
    }.get(scheme, "")
    directory = {"pvc": f'"/models/{path}"', "hf": f'"{rest}"', "file": where, "s3": '"tuned"'}.get(
        scheme, f'"..."  # a copy of {uri}'
    )
    return (
        f"{place}\n{_python(spec, directory)}\nIts README.md, the model card, says the same and what it was trained on."
    )


def _python(spec: Mapping[str, Any], directory: str) -> str:
    task = spec.get("task")
    model_class = _MODEL_CLASSES[Task(task)] if task in set(Task) else "AutoModel"
    loader = _loader(spec)
    lines = [f"  directory = {directory}"]
    if loader == "peft":
        lines = [
            "  from peft import PeftConfig, PeftModel",
            f"  from transformers import AutoConfig, AutoTokenizer, {model_class}",
            *lines,
            *_base(spec, model_class),
            "      config=AutoConfig.from_pretrained(directory))",
            "  model = PeftModel.from_pretrained(base, directory)",
        ]
    else:
        trust = ", trust_remote_code=True)  # runs modeling_*.py of the directory" if loader == "remote-code" else ")"
        lines = [
            f"  from transformers import AutoTokenizer, {model_class}",
            *lines,
            f"  model = {model_class}.from_pretrained(directory{trust}",
        ]
    return "\n".join([*lines, "  tokenizer = AutoTokenizer.from_pretrained(directory)\n"])


def _base(spec: Mapping[str, Any], model_class: str) -> list[str]:
    uri = spec.get("model", {}).get("uri", "")
    if uri.startswith("s3://"):
        return [
            f'  base_directory = "..."  # a copy of {uri}',
            f"  base = {model_class}.from_pretrained(base_directory,",
        ]
    return [
        "  adapter = PeftConfig.from_pretrained(directory)",
        f"  base = {model_class}.from_pretrained(adapter.base_model_name_or_path, revision=adapter.revision,",
    ]


def _loader(spec: Mapping[str, Any]) -> str:
    """How the trainer saves this strategy's models."""
    strategy: Mapping[str, Any] = spec.get("strategy", {})
    adapter = strategy.get("adapter")
    if adapter is not None:
        if adapter.get("type") == "Bottleneck" or adapter.get("stackOn"):
            return "remote-code"
        return "transformers" if adapter.get("merge") else "peft"
    if "promptTuning" in strategy:
        return "peft" if spec.get("task") == Task.TEXT_GENERATION else "remote-code"
    return "transformers"
