"""What is known of a job: conditions, progress, result."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, Field

from finetune_api.base import Contract
from finetune_api.values import Decimal, Unique

Number = Annotated[float, Decimal()]
Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(max_length=1024)]
MetricName = Annotated[str, Field(min_length=1, max_length=64)]
Metrics = Annotated[dict[MetricName, Number], Field(max_length=32)]


class ConditionStatus(StrEnum):
    """A condition's truth."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Contract):
    """A Kubernetes condition (metav1.Condition)."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """Complete, Failed, Suspended, Running, Queued, Ready, Reconciling or Stalled."""
    status: ConditionStatus
    """True, False or Unknown."""
    observed_generation: Count | None = None
    """The generation of the spec that this was said of."""
    last_transition_time: AwareDatetime
    """When status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """The cause, as one word."""
    message: Annotated[str, Field(max_length=32_768)]
    """The cause in words, and what to do about it."""


class Phase(StrEnum):
    """The conditions as one word, for people and columns. Derived; automation reads the conditions."""

    PENDING = "Pending"
    QUEUED = "Queued"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class CheckpointStatus(Contract):
    """The newest checkpoint that can be resumed from."""

    step: Count
    """Its step."""
    time: AwareDatetime
    """When it was completed."""


class ChosenStrategy(StrEnum):
    """What strategy.auto may choose."""

    FULL = "Full"
    BOTTLENECK = "Bottleneck"
    LORA = "LoRA"


class StrategyChoice(Contract):
    """What strategy.auto chose. A restart elsewhere does not change it."""

    strategy: ChosenStrategy
    """The strategy, with its defaults."""
    reason: Annotated[str, Field(min_length=1, max_length=512)]
    """Why, with the figures that decided."""


class Progress(Contract):
    """How far training is. Numbers that are not finite are absent."""

    step: Count
    """Optimizer steps done."""
    total_steps: Count
    """Optimizer steps planned; once a run has stopped early, those it took."""
    percent: Annotated[int, Field(ge=0, le=100)]
    """Steps done of those planned, in percent."""
    epoch: Number | None = None
    """Passes over the training rows done."""
    eta_seconds: Count | None = None
    """Expected seconds to the end; 0 or absent once it has come."""
    loss: Number | None = None
    """Training loss, a mean over the last steps."""
    loss_terms: Metrics = Field(default_factory=dict)
    """The loss's weighted parts at the last step, where there is more than one (distillation, penalties)."""
    learning_rate: Number | None = None
    """Current learning rate of the body."""
    grad_norm: Number | None = None
    """Norm of the last gradient, before clipping."""
    tokens_per_second: Number | None = None
    """Real tokens (no padding) trained on per second."""
    memory_peak_bytes: Count | None = None
    """Most memory allocated: the GPU's, or the process's on CPU."""
    evaluation: Metrics = Field(default_factory=dict)
    """The newest evaluation; also on retention rows (`retentionAccuracy`), and KL(tuned, base) in nats (`klToBase`)."""
    forgetting: Number | None = None
    """Drop of the deciding metric on the retention rows; of loss and perplexity, the relative rise."""
    last_checkpoint: CheckpointStatus | None = None
    """The newest checkpoint."""
    choice: StrategyChoice | None = None
    """What strategy.auto chose, and why."""
    updated: AwareDatetime | None = None
    """When this was true."""


class Result(Contract):
    """What tuning did."""

    uri: Text
    """Where the model is."""
    digest: Annotated[str, Field(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
    """SHA-256 over the output's files."""
    metric: Text
    """The metric that decides."""
    before: Metrics
    """Evaluation before training."""
    after: Metrics
    """Evaluation after training."""
    baseline: Number | None = None
    """The metric without a model: of always giving the most frequent label, or no answer."""
    trainable_parameters: Count
    """Parameters that were trained."""
    total_parameters: Count
    """Parameters of the model."""
    steps: Count
    """Optimizer steps done."""
    stopped_early: bool = False
    """Whether early stopping ended the run."""
    duration_seconds: Number
    """Seconds of training and evaluation, over all attempts."""
    forgetting: Metrics = Field(default_factory=dict)
    """The deciding metric on the retention rows (`before`, `after`), and `klToBase`."""


class FineTuneJobStatus(Contract):
    """The observed state of a job."""

    observed_generation: Count | None = None
    """The generation of the spec that this status is about."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), Unique("type")] = ()
    """Standard conditions: Complete, Failed, Suspended, Running and Queued from the first reconcile, Reconciling and
    Stalled only while they are true, and Ready from the end."""
    phase: Phase | None = None
    """The conditions as one word."""
    strategy: Text | None = None
    """The strategy as one word; of auto, the chosen one once there is one."""
    start_time: AwareDatetime | None = None
    """When the first pod started."""
    completion_time: AwareDatetime | None = None
    """When the job ended."""
    pods_missing_since: AwareDatetime | None = None
    """Since when the Job has fewer pods than it is to have; absent while it has them, and for its first ten seconds."""
    change_waits: bool | None = None
    """True while pods run on as the job was before a change of its spec, which they are not stopped for."""
    restarts: Count = 0
    """How often a pod that failed, or was removed from its node, got a successor. Neither the last failure of a job nor
    a stop that was asked for counts."""
    progress: Progress | None = None
    """How far training is."""
    result: Result | None = None
    """What tuning did, once Complete."""
