"""Reads a job's rows, whatever the task: checked, without repeats and leaks, split; and the rows beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns, DataSource
from finetune_trainer.data.formats import Row
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.selection import UsableRow, hold_out, key_of, without_repeats, without_those_in
from finetune_trainer.data.sources import EVALUATION_SPLITS, TRAIN_SPLITS, read_rows
from finetune_trainer.errors import TrainerError

RowT = TypeVar("RowT", bound=UsableRow)
Check = Callable[[Row, Columns, DataReport, bool], RowT | None]
"""Makes a usable row of a row, or counts in the report why it is none. The last argument: whether it has a label."""


@dataclass(frozen=True, slots=True)
class Part(Generic[RowT]):
    """Rows of one source, and what became of the others."""

    rows: list[RowT]
    report: DataReport


@dataclass(frozen=True, slots=True)
class Rows(Generic[RowT]):
    """The rows of a job."""

    train: Part[RowT]
    evaluation: Part[RowT]
    """Without evaluation data of its own, its report is that of the training rows."""
    replay: Part[RowT] | None
    """Rows of earlier data that are trained on too: as many as belong to the training rows."""
    retention: Part[RowT] | None
    """Rows of an earlier task, to evaluate on."""
    unlabeled: Part[RowT] | None
    """Rows without labels, for distillation."""

    def reports(self) -> list[DataReport]:
        """One a source."""
        parts = (self.train, self.evaluation, self.replay, self.retention, self.unlabeled)
        return list({id(part.report): part.report for part in parts if part is not None}.values())


def load(run: Run, check: Check[RowT], given: Callable[[RowT], str] = key_of) -> Rows[RowT]:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError.

    `given` tells what of a row is there without its label, by which rows without one are compared.
    """
    data, retention_spec = run.spec.data, run.spec.evaluation.retention

    def read_judged(source: DataSource) -> Part[RowT]:
        return _read(source, run, EVALUATION_SPLITS, check, True)  # repeats are a part of what is judged

    def read(source: DataSource, splits: tuple[str, ...], is_labelled: bool = True) -> Part[RowT]:
        part = _read(source, run, splits, check, is_labelled)
        return Part(without_repeats(part.rows, part.report), part.report) if data.deduplicate else part

    def drop(
        part: Part[RowT], others: Sequence[RowT], where: str, text_of: Callable[[RowT], str] = key_of
    ) -> Part[RowT]:
        if not data.deduplicate:
            return part
        return Part(without_those_in(part.rows, others, f"also in the {where} data", part.report, text_of), part.report)

    train = read(data.train, TRAIN_SPLITS)
    evaluation = read_judged(data.evaluation) if data.evaluation else None
    retention = read_judged(retention_spec.data) if retention_spec else None
    if evaluation is not None:
        train = drop(train, evaluation.rows, "evaluation")
    if retention is not None:  # before rows are held out, because a task may give some of those back
        train = drop(train, retention.rows, "retention")
    if not train.rows:
        raise TrainerError(ExitCode.DATA_INVALID, f"{train.report}; no training rows are left", "give other rows")
    if evaluation is None:
        train, evaluation = _held_out(train, data.held_out_fraction(), run.spec.training.seed)
    judged = [*evaluation.rows, *(retention.rows if retention else ())]
    replay = unlabeled = None
    if data.replay is not None:
        replay = drop(read(data.replay.source, TRAIN_SPLITS), judged, "evaluation or retention")
        wanted = round(len(train.rows) * data.replay.fraction / (1 - data.replay.fraction))
        replay = Part(_drawn(replay, max(1, wanted), run.spec.training.seed), replay.report)
    if data.unlabeled is not None:
        unlabeled = drop(read(data.unlabeled, TRAIN_SPLITS, False), judged, "evaluation or retention", given)
        unlabeled = drop(unlabeled, train.rows, "training", given)
    rows = Rows(train, evaluation, replay, retention, unlabeled)
    for part in (train, evaluation, replay, retention, unlabeled):
        if part is not None:
            part.report.num_kept += len(part.rows)
    return rows


def _read(source: DataSource, run: Run, splits: tuple[str, ...], check: Check[RowT], is_labelled: bool) -> Part[RowT]:
    report = DataReport(source.uri, is_training=source is run.spec.data.train)
    rows = []
    for row in read_rows(source, run, splits):
        report.num_read += 1
        if (usable := check(row, run.spec.data.columns, report, is_labelled)) is not None:
            rows.append(usable)
    limit = run.spec.data.max_dropped_fraction
    if report.num_read == 0:
        raise TrainerError(ExitCode.DATA_INVALID, f"{source.uri}: no rows", "the file is empty; check the uri")
    if not rows or report.unusable_fraction > limit:
        report.num_kept = len(rows)
        share = "all rows are" if not rows else f"{report.unusable_fraction:.1%} of the rows are"
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report}; {share} unusable",
            f"mend the rows, or raise data.maxDroppedFraction (now {limit:g})"
            if rows
            else "mend the rows, or set data.columns to the right ones",
        )
    return Part(rows, report)


def _held_out(part: Part[RowT], fraction: float, seed: int) -> tuple[Part[RowT], Part[RowT]]:
    train, evaluation = hold_out(part.rows, fraction, seed)
    if not evaluation:
        num_labels = len({row.label for row in part.rows})
        labels, texts = (f" with {num_labels} labels", " for every label") if num_labels > 1 else ("", "")
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{part.report.source}: of {len(part.rows)} usable rows{labels} none can be held out for evaluation",
            f"give data.evaluation, or at least two different texts{texts}",
        )
    part.report.num_held_out = len(evaluation)
    return Part(train, part.report), Part(evaluation, part.report)


def _drawn(part: Part[RowT], count: int, seed: int) -> list[RowT]:
    """So many rows at random; when there are fewer, all of them, as often as it takes."""
    if not part.rows:
        raise TrainerError(ExitCode.DATA_INVALID, f"{part.report}; no rows are left to replay", "give other rows")
    order = part.rows.copy()
    random.Random(seed).shuffle(order)
    return [order[number % len(order)] for number in range(count)]
