"""Loads a teacher and makes sure that its answers can be compared with the student's: labels, tokens, lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_trainer import storage
from finetune_trainer.batching import Batch
from finetune_trainer.errors import TrainerError
from finetune_trainer.heads import shapes_of
from finetune_trainer.model_checks import check_directory, model_files
from finetune_trainer.model_config import read_config
from finetune_trainer.models import freeze, load_tokenizer, longest_input
from finetune_trainer.tasks import Task
from finetune_trainer.tasks.classes import known_as, listed

_FIELD = "spec.strategy.distillation.teacher"
_LABEL_AND_TRAIN = "label the rows with the teacher and train on them (strategy.full)"
# Words, case, accents, numbers, signs and another script: what tokenizers differ in.
_SAMPLES = (
    "The quick brown fox, aged 42.",
    "na\u00efve Caf\u00e9 \u4e2d\u6587 \U0001f600",
    "e-mail: a_b@c.org\n\tx=1e-5",
)
_SHOWN = 8
_TYPES = frozenset({"token_type_ids"})


@dataclass(frozen=True, slots=True)
class Teacher:
    """A tuned model that only answers."""

    model: PreTrainedModel
    task: Task
    columns: Tensor | None
    """Its class of each of the task's classes, where their order differs."""
    without: frozenset[str]
    """Inputs that its tokenizer does not make."""
    num_classes: int | None
    """Of how many classes it answers; None for all. A vocabulary may be padded beyond what the student's has."""
    digest: str
    """SHA-256 over its weights, its configuration and the order of its classes."""

    @torch.no_grad()
    def output(self, batch: Batch, **wanted: Any) -> Any:
        """Its output for a batch, in the caller's precision."""
        inputs = {name: value for name, value in batch.inputs.items() if name not in self.without}
        return self.model(**inputs, **wanted)

    def unit_logits(self, output: Any, batch: Batch) -> Tensor:
        """Its logits [U, C] in the order of the task's classes."""
        logits_UC = self.task.unit_logits(output, batch)
        if self.columns is not None:
            return logits_UC[:, self.columns]
        return logits_UC[:, : self.num_classes]


def load_teacher(directory: Path, task: Task, student: PreTrainedModel, device: torch.device) -> Teacher:
    """The teacher, frozen and in evaluation mode. Raises TrainerError when it cannot teach this task."""
    try:
        check_directory(directory)
    except TrainerError as error:
        hint = f"{error.hint}; a teacher is a whole model: tune it with strategy.full, or with LoRA and merge: true"
        raise TrainerError(error.code, f"{_FIELD}: {error.message}", hint) from None
    columns = _columns(directory, task.labels)
    own = load_tokenizer(directory)
    check_tokenizers(task.tokenizer, own)
    _check_length(directory, own, task)
    without = _TYPES - set(own.model_input_names)
    if set(own.model_input_names) - set(task.tokenizer.model_input_names) >= _TYPES and "text_pair" in task.probes(1):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{_FIELD}: it tells the two texts of a row apart by token_type_ids, which the student does not have",
            f"take a teacher of the student's kind, or {_LABEL_AND_TRAIN}",
        )
    random_state = torch.get_rng_state()  # what the teacher draws must not change what the student does
    loaded = task.load_model(directory)
    torch.set_rng_state(random_state)
    _check_head(directory, loaded.head)
    freeze(loaded.model)
    order = None if columns == list(range(len(columns))) else torch.tensor(columns, device=device)
    teacher = loaded.model.eval().to(device)
    num_classes = _num_common_tokens(task, student, teacher)
    return Teacher(teacher, task, order, without, num_classes, _digest(directory, columns))


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise TrainerError unless both make the same tokens of the same text, judged by what they hold and do."""
    if difference := _difference(student, teacher):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{_FIELD}: its tokenizer is not the student's: {difference}; their predictions and states do not "
            "belong to the same tokens",
            f"take a teacher with the student's tokenizer, or {_LABEL_AND_TRAIN}",
        )


def _difference(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> str:
    own, other = student.get_vocab(), teacher.get_vocab()
    if own != other:
        common = len(own.items() & other.items())
        return f"{len(other)} tokens, of which {common} are among the student's {len(own)} with the same number"
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        numbers = [getattr(one, f"{name}_token_id") for one in (student, teacher)]
        if numbers[0] != numbers[1]:
            return f"the {name} token is {numbers[1]}, the student's is {numbers[0]}"
    for sample in _SAMPLES:
        if student(sample)["input_ids"] != teacher(sample)["input_ids"]:
            return f"it makes other tokens of {sample!r}"
    return ""


def _columns(directory: Path, labels: Sequence[str]) -> list[int]:
    """The teacher's class number of each label. Raises TrainerError when its labels are others."""
    if not labels:
        return []
    config = read_config(directory)
    own = [str(config.id2label[number]) for number in sorted(config.id2label)]
    order = known_as(labels, own)
    if order is None or len(order) != len(labels):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{_FIELD}: its labels are {listed(sorted(own), _SHOWN)}; those of the job are {listed(labels, _SHOWN)}",
            "tune the teacher on data with these labels, or rename the labels in its config.json (id2label)",
        )
    return [order.index(label) for label in labels]


def _num_common_tokens(task: Task, student: PreTrainedModel, teacher: PreTrainedModel) -> int | None:
    """How many tokens both models have an output for; the tokenizer, which is the same, makes no others."""
    if task.model_class != "AutoModelForCausalLM":
        return None
    sizes = [model.config.get_text_config().vocab_size for model in (student, teacher)]
    return min(sizes) if sizes[0] != sizes[1] else None


def _check_length(directory: Path, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    limit = longest_input(directory, tokenizer)
    longest = max(len(example.input_ids) for example in task.train)
    if longest > limit:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{_FIELD}: it takes at most {limit} tokens, but the longest training row has {longest}",
            f"set spec.data.maxLength to {limit} at most",
        )


def _check_head(directory: Path, head: frozenset[str]) -> None:
    """Raise TrainerError when a part of the head is not in the teacher's files: it would teach random numbers."""
    if missing := sorted(head - shapes_of(directory).keys()):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{_FIELD}: it has not learnt the task: its weights lack {', '.join(missing[:3])}",
            "tune the teacher on the task first (strategy.full), and name its output here",
        )


def _digest(directory: Path, columns: Sequence[int]) -> str:
    digest = hashlib.sha256(repr(list(columns)).encode())
    storage.add_files(digest, model_files(directory))
    return digest.hexdigest()
