"""The protocol's body: what our trainer says survives it, and what Hugging Face's `Trainer` says is understood."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.trainer_status import MAX_BODY_BYTES, Report, progress_of, report_of
from finetune_api.v1alpha1.status import CheckpointStatus, Progress
from plan_builders import NOW, at, make_progress
from status_samples import full_status

OPERATOR_PAGE = Path(__file__).resolve().parents[2] / "docs" / "operator.md"
_FINITE = st.floats(allow_nan=False, allow_infinity=False)


def body(percent: int | None = None, **metrics: Any) -> Report:
    """A report as JSON has it."""
    entries = [{"name": name, "value": str(value)} for name, value in metrics.items()]
    status = {"metrics": entries, "lastUpdatedTime": "2026-01-01T12:00:00Z"}
    if percent is not None:
        status["progressPercentage"] = percent
    return Report.model_validate({"trainerStatus": status})


def through_the_wire(progress: Progress) -> Progress:
    text = report_of(progress, NOW).model_dump_json(by_alias=True, exclude_none=True)
    return progress_of(Report.model_validate_json(text))


def test_a_progress_survives_the_protocol() -> None:
    sample = full_status().progress
    assert sample is not None
    assert through_the_wire(sample) == sample.model_copy(update={"updated": NOW})


_CHECKPOINTS = st.integers(0, 10**9).map(lambda step: CheckpointStatus(step=step, time=NOW))
_PROGRESS = st.fixed_dictionaries(
    {
        "step": st.integers(0, 10**9),
        "total_steps": st.integers(0, 10**9),
        "percent": st.integers(0, 100),
        "loss": st.none() | _FINITE,
        "eta_seconds": st.none() | st.integers(0, 10**9),
        "evaluation": st.dictionaries(st.sampled_from(["accuracy", "loss", "f1"]), _FINITE),
        "last_checkpoint": st.none() | _CHECKPOINTS,
    }
).map(Progress.model_validate)


@given(_PROGRESS)
def test_every_progress_survives_to_twelve_digits(progress: Progress) -> None:
    arrived = through_the_wire(progress)
    assert (arrived.step, arrived.percent, arrived.last_checkpoint) == (
        progress.step,
        progress.percent,
        progress.last_checkpoint,
    )
    assert arrived.evaluation == pytest.approx(progress.evaluation, rel=1e-11)
    assert arrived.loss == (None if progress.loss is None else pytest.approx(progress.loss, rel=1e-11))


def test_a_report_with_everything_is_far_below_the_limit() -> None:
    evaluation = {f"metric_{number:056}": -1.2345678901234e-300 for number in range(32)}
    progress = make_progress(5, evaluation=evaluation)
    assert len(report_of(progress, NOW).model_dump_json(by_alias=True)) < MAX_BODY_BYTES / 10


def test_a_hugging_face_trainers_log_is_understood() -> None:
    progress = progress_of(
        body(25, loss=0.5, learning_rate=1e-4, grad_norm=2.0, epoch=0.75, current_step=50, total_steps=200)
    )
    assert progress == Progress(
        step=50,
        total_steps=200,
        percent=25,
        epoch=0.75,
        loss=0.5,
        learning_rate=1e-4,
        grad_norm=2.0,
        updated=NOW,
    )


def test_the_documented_report_has_a_position_and_figures() -> None:
    [text] = re.findall(r"^\{\"trainerStatus\".*?\}\}$", OPERATOR_PAGE.read_text(), re.MULTILINE | re.DOTALL)
    progress = progress_of(Report.model_validate_json(text))
    assert (progress.step, progress.total_steps, progress.percent) == (40, 100, 40)
    assert (progress.eta_seconds, progress.loss, progress.evaluation) == (90, 0.41, {"accuracy": 0.9})


def test_every_metric_that_a_report_can_have_is_documented() -> None:
    progress = full_status().progress
    assert progress is not None
    sent = {each.name for each in report_of(progress, NOW).trainer_status.metrics}
    named = {re.sub(r"^(eval|loss_term)_.+", r"\1_NAME", name) for name in sent}
    rows = re.findall(r"^\| (`[^|]+) \|[^|]+\|$", OPERATOR_PAGE.read_text().partition("| metric | what")[2], re.M)
    assert len(named) == 13  # all that there are
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == named | {"epoch"}


def test_an_evaluations_timings_are_none_of_its_results() -> None:
    progress = progress_of(
        body(50, eval_loss=0.25, eval_accuracy=0.9, eval_runtime=3.0, eval_samples_per_second=9, eval_=1)
    )
    assert progress.evaluation == {"loss": 0.25, "accuracy": 0.9}


def test_what_a_report_leaves_out_is_taken_from_the_one_before() -> None:
    progress = progress_of(body(50), earlier=make_progress(1, 300))
    assert (progress.step, progress.total_steps, progress.percent) == (150, 300, 50)
    assert progress_of(body(50)).step == 0


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "", "five", "0x10"])
def test_what_is_no_finite_number_is_absent(value: str) -> None:
    progress = progress_of(body(loss=value, eval_loss=value, current_step=value, last_checkpoint_step=value))
    assert (progress.loss, progress.evaluation, progress.step, progress.last_checkpoint) == (None, {}, 0, None)


@pytest.mark.parametrize("value", [-1, 2**60, 1e300])
def test_a_count_that_cannot_be_is_absent(value: float) -> None:
    progress = progress_of(body(total_steps=value, memory_peak_bytes=value))
    assert (progress.total_steps, progress.memory_peak_bytes) == (0, None)


@pytest.mark.parametrize("time", ["1e300", "-1e300", "1e18"])
def test_a_checkpoint_at_no_time_of_a_calendar_is_absent(time: str) -> None:
    assert progress_of(body(last_checkpoint_step=5, last_checkpoint_time=time)).last_checkpoint is None


def test_more_evaluation_metrics_than_the_status_has_room_for_are_cut() -> None:
    progress = progress_of(body(**{f"eval_metric_{number}": 1 for number in range(100)}, **{"eval_" + "x" * 100: 1}))
    assert len(progress.evaluation) == 32
    assert Progress.model_validate(progress.to_json()) == progress
    assert math.isfinite(sum(progress.evaluation.values()))


def test_a_long_name_is_cut_to_what_the_status_takes() -> None:
    progress = progress_of(body(**{"eval_" + "x" * 100: 1}))
    assert list(progress.evaluation) == ["x" * 64]


@pytest.mark.parametrize(
    "change",
    [
        {"progressPercentage": -1},
        {"progressPercentage": 101},
        {"estimatedRemainingSeconds": -1},
        {"estimatedRemainingSeconds": 2**60},
        {"metrics": [{"name": "x" * 129, "value": "1"}]},
        {"metrics": [{"name": "x", "value": "1" * 65}]},
        {"metrics": [{"name": "x", "value": "1"}] * 257},
        {"lastUpdatedTime": "2026-01-01T12:00:00"},
    ],
    ids=lambda change: str(change)[:40],
)
def test_what_is_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Report.model_validate({"trainerStatus": {"lastUpdatedTime": "2026-01-01T12:00:00Z", **change}})


def test_fields_of_a_newer_sender_are_passed_over() -> None:
    status = {"lastUpdatedTime": "2026-01-01T12:00:00+02:00", "newer": 1, "progressPercentage": 3}
    report = Report.model_validate({"trainerStatus": status, "alsoNewer": {}})
    assert progress_of(report).updated == datetime(2026, 1, 1, 10, 0, tzinfo=UTC)
    assert progress_of(report).percent == 3


def test_the_time_of_the_report_is_the_senders() -> None:
    assert report_of(make_progress(1, updated=at(-500)), NOW).trainer_status.last_updated_time == NOW
