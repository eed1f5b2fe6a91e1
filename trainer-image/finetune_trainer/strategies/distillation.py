"""Knowledge distillation: a student learns from a teacher's answers, states and relations, and from the labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.job import Task as TaskName
from finetune_api.v1alpha1.strategy import DistillationStrategy
from finetune_trainer import device as devices
from finetune_trainer.batching import Batch, BucketSampler
from finetune_trainer.data.sources import model_directory
from finetune_trainer.distillation import feature
from finetune_trainer.distillation.attention import NotRecordable, make_recordable, recording
from finetune_trainer.distillation.cache import Answers, Asking, answers_of
from finetune_trainer.distillation.objective import DistillationObjective, Pair, needs_states
from finetune_trainer.distillation.student import keep_layers, num_hidden_layers
from finetune_trainer.distillation.teacher import Teacher, load_teacher
from finetune_trainer.errors import TrainerError
from finetune_trainer.models import Loaded
from finetune_trainer.optim import Trained
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task

# Higher than for full tuning: a student that lost layers has far to go, and a teacher's answers overfit less.
DEFAULT_LEARNING_RATE = 2e-4
CAUSAL_LEARNING_RATE = 5e-5
_FIELD = "spec.strategy.distillation"
_PROJECTIONS = "distillation.projections."


def prepare_distillation(
    strategy: DistillationStrategy,
    run: Run,
    task: Task,
    loaded: Loaded,
    device: torch.device,
    note: Callable[[str], None],
) -> Tuning:
    """Make the student of the loaded model and let it learn from the teacher. Raises TrainerError."""
    student = loaded.model
    if strategy.student_layers is not None:
        keep_layers(student, strategy.student_layers)
    own_attention = student.config._attn_implementation
    teacher = load_teacher(model_directory(strategy.teacher, run), task, student, device)
    pairs = _pairs(strategy, student, teacher.model)
    if needs_states(strategy):
        _check_states(student, teacher, task)
    if strategy.needs_attention():
        _record_attention(student, teacher, task)
    projections = _projections(strategy, student, teacher.model, pairs, run.spec.training.seed).to(device)
    num_steps = _distillation_steps(strategy, run, task)
    answers = _known_answers(strategy, run, teacher, device, note)
    objective = DistillationObjective(
        spec=strategy,
        task=task,
        teacher=teacher if answers is None else answers,
        num_classes=teacher.num_classes,
        pairs=pairs,
        projections=projections,
        autocast=functools.partial(devices.autocast, run.spec.training.precision, device),
        distillation_steps=num_steps,
    )

    def save(directory: Path) -> None:
        student.set_attn_implementation(own_attention)
        student.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)

    return Tuning(
        student,
        _trained(loaded, projections),
        CAUSAL_LEARNING_RATE if task.model_class == "AutoModelForCausalLM" else DEFAULT_LEARNING_RATE,
        save,
        "transformers",
        objective=objective,
        choose_rows=_labelled_rows(run, task, num_steps) if strategy.task_steps else None,
        result_after=num_steps if strategy.task_steps else 0,
        inputs=teacher.digest,
    )


def _trained(loaded: Loaded, projections: nn.ModuleDict) -> dict[str, Trained]:
    """All of the student; and the projections, which are in the checkpoints but in no export."""
    body = {name: Trained(one, is_head=name in loaded.head) for name, one in loaded.model.named_parameters()}
    return body | {f"{_PROJECTIONS}{name}": Trained(one, is_head=True) for name, one in projections.named_parameters()}


def _pairs(strategy: DistillationStrategy, student: PreTrainedModel, teacher: PreTrainedModel) -> list[Pair]:
    """(student layer, teacher layer), from the bottom up."""
    sizes = num_hidden_layers(student), num_hidden_layers(teacher)
    given = strategy.feature.layer_map if strategy.feature is not None else ()
    if not given:
        return feature.layer_map(*sizes)
    for pair in given:
        if pair.student >= sizes[0] or pair.teacher >= sizes[1]:
            raise TrainerError(
                ExitCode.SPEC_INVALID,
                f"{_FIELD}.feature.layerMap pairs layer {pair.student} with layer {pair.teacher}, but the student has "
                f"{sizes[0]} layers and the teacher {sizes[1]}",
                "layers are counted from 0",
            )
    return sorted((pair.student, pair.teacher) for pair in given)


def _projections(
    strategy: DistillationStrategy, student: PreTrainedModel, teacher: PreTrainedModel, pairs: Sequence[Pair], seed: int
) -> nn.ModuleDict:
    """A linear layer for every paired layer, where the widths differ (Romero et al. 2014, section 2.2)."""
    widths = [model.config.get_text_config().hidden_size for model in (student, teacher)]
    if strategy.feature is None or widths[0] == widths[1]:
        return nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):  # the same numbers whatever was drawn before
        torch.manual_seed(seed)
        return nn.ModuleDict({str(one): nn.Linear(*widths) for one, _ in pairs})


def _check_states(student: PreTrainedModel, teacher: Teacher, task: Task) -> None:
    """Raise TrainerError unless both models show a state of each token after each layer."""
    batch = task.collate(task.train[:1])
    for whose, model in (("student", student), ("teacher", teacher.model)):
        output = _output(model, teacher, batch, output_hidden_states=True)
        found = [state.shape[:2] for state in getattr(output, "hidden_states", None) or ()]
        if found != [batch.inputs["input_ids"].shape] * (num_hidden_layers(model) + 1):
            raise TrainerError(
                ExitCode.MODEL_INVALID,
                f"{_FIELD}: the states of the {whose} ({model.config.model_type}) cannot be compared: it does not show "
                "one of each token after each layer",
                "leave out feature, and relation's distance, angle and layers; response needs none",
            )


@torch.no_grad()
def _output(model: PreTrainedModel, teacher: Teacher, batch: Batch, **options: Any) -> Any:
    """What the student, or the teacher's own model, gives for a batch."""
    on_device = batch.to(model.device)
    return teacher.output(on_device, **options) if model is teacher.model else model(**on_device.inputs, **options)


def _record_attention(student: PreTrainedModel, teacher: Teacher, task: Task) -> None:
    """Make both models' attention visible, and see that it is. Raises TrainerError."""
    batch = task.collate(task.train[:1])
    for whose, model in (("student", student), ("teacher", teacher.model)):
        everything = frozenset(range(num_hidden_layers(model)))
        try:
            make_recordable(model)
            with recording(everything) as record:
                _output(model, teacher, batch)
            if record.layers.keys() != everything:
                raise NotRecordable(f"it shows {len(record.layers)} of {len(everything)} layers")
        except NotRecordable as error:
            raise TrainerError(
                ExitCode.MODEL_INVALID,
                f"{_FIELD}: the attention of the {whose} ({model.config.model_type}) cannot be seen: {error}",
                "leave out feature.attention and relation.selfAttention",
            ) from None


def _known_answers(
    strategy: DistillationStrategy, run: Run, teacher: Teacher, device: torch.device, note: Callable[[str], None]
) -> Answers | None:
    """The teacher's answers for all rows, if nothing else is asked of it and they can be kept."""
    response, training = strategy.response, run.spec.training
    if response is None or strategy.feature is not None or strategy.relation is not None:
        return None
    is_large = run.spec.task == TaskName.TEXT_GENERATION  # a class for every token of the vocabulary
    if is_large and response.top_k is None:
        return None
    asking = Asking(
        batch_size=run.spec.evaluation_batch_size(),
        device=device,
        precision=training.precision,
        autocast=functools.partial(devices.autocast, training.precision, device),
        top_k=response.top_k if is_large else None,
        temperature=response.temperature if is_large else 1.0,
    )
    return answers_of(teacher, Path(run.work_dir) / "teacher-answers", asking, note)


def _distillation_steps(strategy: DistillationStrategy, run: Run, task: Task) -> int:
    """Steps before those on the task's loss alone. Raises TrainerError when none are left."""
    total = run.spec.training.num_steps(len(task.train))
    if strategy.task_steps >= total:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"{_FIELD}.taskSteps is {strategy.task_steps}, but the run has {total} steps in all",
            f"use at most {total - 1}, or train longer",
        )
    return total - strategy.task_steps


def _labelled_rows(run: Run, task: Task, first_step: int) -> Callable[[int, list[int]], list[int]] | None:
    """From a step on, batches of rows with labels only; None when all rows have some."""
    training = run.spec.training
    labelled = [row for row, example in enumerate(task.train) if task.num_units([example])]
    if len(labelled) == len(task.train):
        return None
    lengths = [len(task.train[row].input_ids) for row in labelled]
    sampler = BucketSampler(lengths, training.batch_size, training.seed)

    def choose(step: int, rows: list[int]) -> list[int]:
        if step < first_step:
            return rows
        epoch, position = divmod(step - first_step, sampler.batches_per_epoch)
        sampler.load_state_dict({"epoch": epoch, "position": position})
        return [labelled[number] for number in sampler.next()]

    return choose
