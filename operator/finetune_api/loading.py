"""How a job's output is loaded: the lines of Python for it, which its model card and `kubectl finetune result` show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from finetune_api.problems import printable
from finetune_api.v1alpha1.job import Task
from finetune_api.v1alpha1.strategy import AdapterType
from finetune_api.values import OBJECT_STORE

Loader = Literal["transformers", "transformers-remote-code", "peft"]

MODEL_CLASSES = {
    Task.TEXT_CLASSIFICATION: "AutoModelForSequenceClassification",
    Task.TEXT_GENERATION: "AutoModelForCausalLM",
    Task.TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    Task.QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
}
"""The class of transformers that loads a model for a task."""

FINETUNE = "finetune"
"""The key of config.json beside peft's files: the adapter's `name`, the `base_digest` of what it was trained on, the
`quantization` of that if there was one and its BASE_SETTINGS, and peft's `task_type`, which peft's own file does not
tell for answers.
"""
BASE_SETTINGS = "base_settings"
"""What transformers' BitsAndBytesConfig takes to load the base model as it was trained on."""

_PLAIN = "model = {model_class}.from_pretrained(directory)"
_WITH_CODE = """\
# The new layers are in the file modeling_*.py beside the weights; loading runs that file.
model = {model_class}.from_pretrained(directory, trust_remote_code=True)"""
_STACKED = "# An earlier adapter with its own head, as its job left it: model.set_active(one of model.adapter_names)"
_GENERATING = """
# Where the texts that were learnt ended: model.generate(..., eos_token_id=ends)
ends = GenerationConfig.from_pretrained(directory).eos_token_id"""
_OF_PEFT = """\
# The directory holds what was trained and the config; the base model is loaded from {place}.
config = AutoConfig.from_pretrained(directory)
{before}base = {model_class}.from_pretrained(
    {arguments}
)
model = PeftModel.from_pretrained(base, directory)"""
_IN_FEWER_BITS = f"""\
# In 4 bits, as it was trained on; in others its answers are slightly different.
bits = BitsAndBytesConfig(**config.{FINETUNE}["{BASE_SETTINGS}"])
"""
_OTHER_LABELS = (
    "ignore_mismatched_sizes=True,  # of an output layer for other labels, in place of which the directory has its own"
)


def lines_that_load(spec: Mapping[str, Any]) -> str:
    """Python that makes a `model` and its `tokenizer` of what the job of a spec left in `directory`.

    The strategy is one that was trained: auto has become it. Of a base model in an object store the lines want a copy
    in `base_directory`. The spec is as it is stored, and may be one of another release.
    """
    task, loader = spec.get("task"), loader_of(spec)
    model_class = MODEL_CLASSES[Task(task)] if task in set(Task) else "AutoModel"
    is_written = task == Task.TEXT_GENERATION
    names = {model_class, "AutoTokenizer", *(["GenerationConfig"] if is_written else [])}
    if loader == "peft":
        names |= {"AutoConfig", *(["BitsAndBytesConfig"] if _adapter(spec).get("quantization") else [])}
    lines = [f"from transformers import {', '.join(sorted(names))}", ""]
    if loader == "peft":
        imported = "PeftModel" if base_to_copy(spec) else "PeftConfig, PeftModel"
        lines = [f"from peft import {imported}", *lines, _of_peft(spec, model_class)]
    else:
        lines.append((_PLAIN if loader == "transformers" else _WITH_CODE).format(model_class=model_class))
    lines.append("tokenizer = AutoTokenizer.from_pretrained(directory)")
    lines += [_STACKED] if _adapter(spec).get("stackOn") else []
    return "\n".join([*lines, *([_GENERATING] if is_written else []), ""])


def loader_of(spec: Mapping[str, Any]) -> Loader:
    """What loads the output of a spec's strategy: a class of transformers, that with code of the output's, or peft."""
    strategy = spec.get("strategy", {})
    if "adapter" in strategy:
        adapter = _adapter(spec)
        if adapter.get("type", AdapterType.BOTTLENECK) == AdapterType.BOTTLENECK or adapter.get("stackOn"):
            return "transformers-remote-code"
        return "transformers" if adapter.get("merge") else "peft"
    if "promptTuning" in strategy:
        return "peft" if spec.get("task") == Task.TEXT_GENERATION else "transformers-remote-code"
    return "transformers"


def base_to_copy(spec: Mapping[str, Any]) -> str:
    """The URI of the base model that has to be copied before the output can be loaded; empty if there is none."""
    uri = str(spec.get("model", {}).get("uri", ""))
    return uri if loader_of(spec) == "peft" and uri.startswith(OBJECT_STORE) else ""


def _adapter(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    adapter: Mapping[str, Any] = spec.get("strategy", {}).get("adapter", {})
    return adapter


def _of_peft(spec: Mapping[str, Any], model_class: str) -> str:
    """The lines of a base model and of what peft puts on it."""
    place, before = "where it was", "adapter = PeftConfig.from_pretrained(directory)\n"
    arguments = ["adapter.base_model_name_or_path,", "revision=adapter.revision,"]
    if uri := base_to_copy(spec):
        place, before, arguments = f"a copy of {printable(uri)}", "", ["base_directory,"]
    arguments.append("config=config,")
    if _adapter(spec).get("quantization"):
        before += _IN_FEWER_BITS
        arguments.append("quantization_config=bits,")
    return _OF_PEFT.format(
        place=place, before=before, model_class=model_class, arguments="\n    ".join([*arguments, _OTHER_LABELS])
    )
