"""Takes values out of a row's columns, and says what is wrong with them by row, column and field."""

from __future__ import annotations

import json
import math
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_api.v1alpha1.sources import Columns
from finetune_trainer.data.formats import Row, shown
from finetune_trainer.data.report import DataReport
from finetune_trainer.errors import TrainerError

SHARED_COLUMNS = "all sources share data.columns, and the training rows fit it"
"""Why the columns of another source are renamed, and not named."""
_SHOWN = 10
_LONGEST = 40


def value_in(row: Row, column: str, field: str, report: DataReport) -> Any:
    """What a row has in a column. The first row has to have it: later ones of a jsonl file may leave it out."""
    there = _there(row, column)
    if there not in row.values and report.num_read == 1:
        found = [str(name) for name in row.values]
        listed = ", ".join(map(_exactly, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source} {row.place}: no column {column!r}; it has {listed or 'none'}",
            f"set data.columns.{field}; " + (nearest(column, found) or "it names the column to read")
            if report.is_training
            else f"rename the column there to {column!r}: {SHARED_COLUMNS}",
        )
    return _but_for_nan(row.values.get(there))


def optional_in(row: Row, columns: Columns, field: str, report: DataReport) -> Any:
    """What a row has in the column that is named for a field, or in that of its own name, which rows need not have.

    A column of that name is not the field's when it is named for another one.
    """
    if (column := getattr(columns, field, None)) is not None:
        return value_in(row, column, field, report)
    return None if field in named(columns, row) else _but_for_nan(row.values.get(field))


def named(columns: Columns, row: Row) -> set[str]:
    """The row's columns that are named for some field."""
    return {_there(row, column) for _, column in columns if column is not None}


def _there(row: Row, column: str) -> str:
    """What a row calls a column: those of CSV files have lost the spaces around their names."""
    return column if column in row.values else column.strip()


def text_in(row: Row, column: str, field: str, report: DataReport) -> str:
    """The text in a column; empty where there is none."""
    return _as_text(value_in(row, column, field, report), row, column, field, report)


def optional_text_in(row: Row, columns: Columns, field: str, report: DataReport) -> str:
    """The text in a column that rows need not have, unless it is named."""
    column = getattr(columns, field) or field
    return _as_text(optional_in(row, columns, field, report), row, column, field, report)


def _as_text(value: Any, row: Row, column: str, field: str, report: DataReport) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise of_wrong_type(row, field, value, "a string", column, report)


def _exactly(name: str) -> str:
    """A column's name with the spaces around it, which may be all that is wrong with it; cut to what fits a message."""
    return repr(name) if len(name) <= _LONGEST else shown(name)


def _but_for_nan(value: Any) -> Any:
    """A missing value as None: a table that has no other way to say so has a number that is none."""
    return None if isinstance(value, float) and math.isnan(value) else value


def parsed(value: Any) -> Any:
    """What a string is the JSON of: CSV has nothing but strings, and Parquet holds no lists of different things."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def of_wrong_type(row: Row, field: str, value: Any, wanted: str, column: str, report: DataReport) -> TrainerError:
    """The error for a value that cannot be what its field holds: the whole column will be wrong."""
    return TrainerError(
        ExitCode.DATA_INVALID,
        f"{report.source} {row.place}: the {field} {shown(value)} is of type {type(value).__name__}, not {wanted}",
        f"is {column!r} the right column for data.columns.{field}?",
    )


def is_unicode(text: str) -> bool:
    r"""Whether a text can be written; JSON lets half of an emoji ("\ud83d") through."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
