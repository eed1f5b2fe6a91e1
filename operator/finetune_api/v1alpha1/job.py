"""The FineTuneJob resource."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import GROUP, Contract, Rule
from finetune_api.v1alpha1.changes import fixed_at_the_end, fixed_while_running, immutable
from finetune_api.v1alpha1.metadata import ObjectMeta
from finetune_api.v1alpha1.scheduling import PodSpec, ResourcesSpec
from finetune_api.v1alpha1.sources import Columns, DataSource, DataSpec, ModelSource, OutputSpec
from finetune_api.v1alpha1.status import FineTuneJobStatus
from finetune_api.v1alpha1.strategy import PromptInitialization, Strategy
from finetune_api.v1alpha1.training import CheckpointSpec, EvaluationSpec, Metric, TrainingSpec
from finetune_api.values import DnsSubdomain

VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"


class Task(StrEnum):
    """What the model learns to do."""

    TEXT_CLASSIFICATION = "TextClassification"
    TEXT_GENERATION = "TextGeneration"
    TOKEN_CLASSIFICATION = "TokenClassification"  # noqa: S105
    QUESTION_ANSWERING = "QuestionAnswering"


COLUMNS_OF_TASK: dict[Task, tuple[str, ...]] = {
    Task.TEXT_CLASSIFICATION: ("text", "text_pair", "label"),
    Task.TEXT_GENERATION: (
        *("text", "prompt", "completion", "messages", "tools"),
        *("instruction", "input", "output", "system"),
    ),
    Task.TOKEN_CLASSIFICATION: ("tokens", "tags"),
    Task.QUESTION_ANSWERING: ("question", "context", "answers"),
}
METRICS_OF_TASK: dict[Task, tuple[Metric, ...]] = {
    Task.TEXT_CLASSIFICATION: (Metric.ACCURACY, Metric.MACRO_F1, Metric.LOSS),
    Task.TEXT_GENERATION: (Metric.PERPLEXITY, Metric.LOSS),
    Task.TOKEN_CLASSIFICATION: (Metric.ENTITY_F1, Metric.ACCURACY, Metric.LOSS),
    Task.QUESTION_ANSWERING: (Metric.F1, Metric.EXACT_MATCH, Metric.LOSS),
}


def _columns_rule(task: Task) -> Rule:
    foreign = [name for name in Columns.model_fields if name not in COLUMNS_OF_TASK[task]]
    aliases = [Columns.model_fields[name].alias for name in foreign]
    return Rule(
        cel=f"self.task != '{task}' || !has(self.data.columns) || !("
        + " || ".join(f"has(self.data.columns.{alias})" for alias in aliases)
        + ")",
        message=f"{task} reads the columns "
        + ", ".join(str(Columns.model_fields[name].alias) for name in COLUMNS_OF_TASK[task])
        + " only",
        holds=lambda self: self.task != task or all(getattr(self.data.columns, name) is None for name in foreign),
        field=".data.columns",
    )


def _metric_rule(task: Task) -> Rule:
    allowed = METRICS_OF_TASK[task]
    return Rule(
        cel=f"self.task != '{task}' || !has(self.evaluation) || !has(self.evaluation.metric)"
        f" || self.evaluation.metric in [{', '.join(repr(str(metric)) for metric in allowed)}]",
        message=f"{task} is judged by {', '.join(allowed)}",
        holds=lambda self: self.task != task or self.evaluation.metric in (None, *allowed),
        field=".evaluation.metric",
    )


_NO_SAMPLES_COMPARED = (
    "!has(self.strategy.distillation) || !has(self.strategy.distillation.relation)"
    " || (double(self.strategy.distillation.relation.distance) == 0.0"
    " && double(self.strategy.distillation.relation.angle) == 0.0)"
)
_WHOLE_BATCH = Rule(
    cel=f"{_NO_SAMPLES_COMPARED} || !has(self.training) || !has(self.training.microBatchSize)"
    " || self.training.microBatchSize >= self.training.batchSize",
    message="relations between samples (relation.distance, relation.angle) are those of a whole batch: leave out "
    "microBatchSize, or set both weights to 0",
    holds=lambda self: (
        not self.strategy.compares_samples()
        or (self.training.micro_batch_size or self.training.batch_size) >= self.training.batch_size
    ),
    field=".training.microBatchSize",
)
_ONE_PROCESS = Rule(
    cel=f"{_NO_SAMPLES_COMPARED} || !has(self.resources)"
    " || (self.resources.nodes == 1 && self.resources.gpusPerNode <= 1)",
    message="relations between samples (relation.distance, relation.angle) are those of a whole batch in one process: "
    "use 1 node and at most 1 GPU, or set both weights to 0",
    holds=lambda self: (
        not self.strategy.compares_samples() or (self.resources.nodes == 1 and self.resources.gpus_per_node <= 1)
    ),
    field=".resources",
)
_DISTILLATION_STEPS = Rule(
    cel="!has(self.strategy.distillation) || !has(self.training) || !has(self.training.maxSteps)"
    " || self.strategy.distillation.taskSteps < self.training.maxSteps",
    message="distillation.taskSteps must be less than training.maxSteps, which counts both stages",
    holds=lambda self: (
        self.strategy.distillation is None
        or self.training.max_steps is None
        or self.strategy.distillation.task_steps < self.training.max_steps
    ),
    field=".strategy.distillation.taskSteps",
)


_UNLABELED = Rule(
    cel="!has(self.data.unlabeled) || has(self.strategy.distillation)",
    message="rows without labels are for distillation only: a teacher is what labels them",
    holds=lambda self: self.data.unlabeled is None or self.strategy.distillation is not None,
    field=".data.unlabeled",
)
_SHARED_OUTPUT = Rule(
    cel="!has(self.resources) || !has(self.resources.nodes) || self.resources.nodes == 1"
    " || self.output.uri.startsWith('pvc://')",
    message="a job of several nodes needs a pvc:// output: all of them mount its claim, where the checkpoints are",
    holds=lambda self: self.resources.nodes == 1 or self.output.uri.startswith("pvc://"),
    field=".output.uri",
)
_RATE_OF_CHOICE = Rule(
    cel="!has(self.strategy.auto) || !has(self.training) || !has(self.training.learningRate)",
    message="the learning rate depends on what strategy.auto chooses: leave it out, or give a strategy",
    holds=lambda self: self.strategy.auto is None or self.training.learning_rate is None,
    field=".training.learningRate",
)
_LABELLED_PROMPT = Rule(
    cel="!has(self.strategy.promptTuning) || self.strategy.promptTuning.initialization != 'Labels'"
    " || self.task in ['TextClassification', 'TokenClassification']",
    message="initialization Labels needs a task with class labels, TextClassification or TokenClassification; "
    "use Vocabulary, or Text with a sentence that says what is wanted",
    holds=lambda self: (
        self.strategy.prompt_tuning is None
        or self.strategy.prompt_tuning.initialization != PromptInitialization.LABELS
        or self.task in (Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION)
    ),
    field=".strategy.promptTuning.initialization",
)


class FineTuneJobSpec(Contract):
    """A fine-tuning run: which model learns what, from which data, and how."""

    task: Task
    """What the model learns to do."""
    model: ModelSource
    """The pretrained model."""
    data: DataSpec
    """Training and evaluation rows."""
    strategy: Strategy
    """The approach: exactly one."""
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    """The optimisation."""
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    """How the model is judged."""
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    """When the state is saved."""
    output: OutputSpec
    """Where the tuned model goes."""
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    """The size of the job."""
    pod: PodSpec = Field(default_factory=PodSpec)
    """Where and how the pods run."""
    queue_name: Annotated[DnsSubdomain, Field(max_length=63)] | None = None
    """A Kueue LocalQueue that admits the job."""
    suspend: bool = False
    """Hold the job: pods are stopped after saving a checkpoint, and training resumes when this is false again. Only
    a pvc:// output keeps checkpoints; with another, training starts anew."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Retries after failures that may pass; failures that cannot pass (bad data, non-finite loss) are never retried."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Fail the job when it has run this long since it was started, or was last resumed: as with a batch/v1 Job, the
    clock stops with `suspend` and starts anew."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Delete the job this long after its end; never by default. Outputs stay."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *(_columns_rule(task) for task in Task),
        *(_metric_rule(task) for task in Task),
        _UNLABELED,
        _WHOLE_BATCH,
        _ONE_PROCESS,
        _DISTILLATION_STEPS,
        _LABELLED_PROMPT,
        _RATE_OF_CHOICE,
        _SHARED_OUTPUT,
        *(immutable(field) for field in ("task", "model", "data", "strategy", "output")),
        *(immutable(field) for field in ("training", "evaluation", "checkpoint")),
    )

    def metric(self) -> Metric:
        """The metric that decides: the one given, else the task's first."""
        return self.evaluation.metric or METRICS_OF_TASK[self.task][0]

    def evaluation_batch_size(self) -> int:
        """Rows per forward pass in evaluation: those given, else as many as suit the task."""
        return self.evaluation.batch_size or (8 if self.task == Task.TEXT_GENERATION else 64)

    def sources(self) -> Iterator[tuple[str, ModelSource | DataSource]]:
        """All that is read, each with its field; the data first, which is small."""
        data, strategy = self.data, self.strategy
        found: dict[str, ModelSource | DataSource | None] = {
            "data.train": data.train,
            "data.evaluation": data.evaluation,
            "data.unlabeled": data.unlabeled,
            "data.replay.source": data.replay.source if data.replay else None,
            "evaluation.retention.data": self.evaluation.retention.data if self.evaluation.retention else None,
            "model": self.model,
            "strategy.distillation.teacher": strategy.distillation.teacher if strategy.distillation else None,
        }
        if strategy.adapter:
            found |= {f"strategy.adapter.stackOn[{place}]": one for place, one in enumerate(strategy.adapter.stack_on)}
        return ((f"spec.{field}", source) for field, source in found.items() if source is not None)


class FineTuneJob(Contract):
    """A FineTuneJob as it stands in a manifest."""

    api_version: Literal["finetune-operator.io/v1alpha1"]
    """Always finetune-operator.io/v1alpha1."""
    kind: Literal["FineTuneJob"]
    """Always FineTuneJob."""
    metadata: ObjectMeta
    """Name and namespace."""
    spec: FineTuneJobSpec
    """What is wanted."""
    status: FineTuneJobStatus | None = None
    """What is observed; ignored on input."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *(fixed_while_running(field) for field in ("resources", "pod", "queueName")),
        *(fixed_at_the_end(field) for field in ("resources", "pod", "queueName")),
        *(fixed_at_the_end(field) for field in ("backoffLimit", "activeDeadlineSeconds")),
    )
