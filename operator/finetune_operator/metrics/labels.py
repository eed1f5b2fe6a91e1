"""The fixed sets that label values come from: what users or pods can write never becomes a series of its own."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.training import Metric
from finetune_operator.plan.plan import SPEC_INVALID

OTHER = "Other"

REASONS = frozenset(
    {
        *(code.reason for code in ExitCode),
        SPEC_INVALID,
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "JobFailed",
        "PodFailurePolicy",
        "Preempted",
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


FORGETTING = frozenset({"before", "after", "drop", "kl"})
"""Measures of forgetting: the metric on the retention set before and after, its drop, and KL(tuned, base)."""


def reason_label(reason: str) -> str:
    """The reason, or Other."""
    return reason if reason in REASONS else OTHER
