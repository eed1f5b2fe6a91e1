"""The fixed sets that label values come from: what users or pods can write never becomes a series of its own."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.measures import on_retention
from finetune_api.v1alpha1.training import Metric
from finetune_operator.plan.plan import SPEC_INVALID

OTHER = "Other"

REASONS = frozenset(
    {
        *(code.reason for code in ExitCode),
        SPEC_INVALID,
        "BackoffLimitExceeded",
        "ContainerNotStarted",
        "DeadlineExceeded",
        "JobFailed",
        "OtherContainerFailed",
        "PodFailurePolicy",
        "Preempted",
        "RejectedByNode",
        "TrainerFailed",
    }
)
"""Reasons that a job can end with."""

EVALUATIONS = frozenset(
    {
        *(metric.value for metric in Metric),
        *("balanced_accuracy", "bertscore", "bleu", "cer", "chrf", "entropy", "exact_match", "macro_f1", "mae"),
        *("matthews_correlation", "mean_token_accuracy", "meteor", "micro_f1", "mse", "pearson", "pearsonr"),
        *("precision", "r2", "recall", "rmse", "roc_auc", "rouge1", "rouge2", "rougeL", "rougeLsum", "sacrebleu"),
        *("spearmanr", "wer", "weighted_f1"),
    }
)
"""Evaluation metrics that have a series: the contract's, and those that Hugging Face's `evaluate` and TRL name so."""

RETENTIONS = {on_retention(metric): metric.value for metric in Metric}
"""Names of evaluations on the retention rows, and the metric that each is."""

LOSS_TERMS = frozenset(
    {
        *("task", "penalty"),
        *("response", "hidden", "attention", "distance", "angle", "layers", "selfAttention"),
    }
)
"""Weighted parts of the loss that have a series: the task's own, and what strategies add to it."""

FORGETTING = frozenset({"before", "after", "drop"})
"""Measures of forgetting: the deciding metric on the retention rows before and after training, and its drop."""


def reason_label(reason: str) -> str:
    """The reason, or Other."""
    return reason if reason in REASONS else OTHER
