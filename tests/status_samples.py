"""A status with every field, as the operator will write it."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_api.v1alpha1.status import (
    CheckpointStatus,
    ChosenStrategy,
    Condition,
    ConditionStatus,
    FineTuneJobStatus,
    Phase,
    Progress,
    Result,
    StrategyChoice,
)

TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def full_status() -> FineTuneJobStatus:
    """Every field is given."""
    return FineTuneJobStatus(
        observed_generation=1,
        conditions=tuple(
            Condition(
                type=kind,
                status=status,
                observed_generation=1,
                last_transition_time=TIME,
                reason="TrainingStarted",
                message="pods run; nothing is to be done",
            )
            for kind, status in (("Running", ConditionStatus.TRUE), ("Complete", ConditionStatus.FALSE))
        ),
        phase=Phase.RUNNING,
        strategy="Bottleneck",
        start_time=TIME,
        completion_time=TIME,
        restarts=1,
        progress=Progress(
            step=50,
            total_steps=100,
            percent=50,
            epoch=1.5,
            eta_seconds=60,
            loss=0.25,
            learning_rate=2e-4,
            grad_norm=1.5,
            tokens_per_second=1234.5,
            memory_peak_bytes=2**34,
            loss_terms={"task": 0.125, "response": 0.0625},
            evaluation={"accuracy": 0.5, "loss": 1e-12, "retentionAccuracy": 0.25, "klToBase": 0.03125},
            forgetting=0.75,
            last_checkpoint=CheckpointStatus(step=40, time=TIME),
            choice=StrategyChoice(strategy=ChosenStrategy.BOTTLENECK, reason="only 100 training rows"),
            updated=TIME.replace(microsecond=123456),
        ),
        result=Result(
            uri="pvc://models/tuned",
            digest="sha256:" + "0a" * 32,
            metric="accuracy",
            before={"accuracy": 0.5},
            after={"accuracy": 1.0},
            baseline=0.5,
            trainable_parameters=2**33,
            total_parameters=2**36,
            steps=100,
            stopped_early=True,
            duration_seconds=12.5,
            forgetting={"before": 0.5, "after": 0.25},
        ),
    )
