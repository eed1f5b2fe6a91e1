"""Reads rows from jsonl, csv and parquet files; every row knows its place, so that an error can name it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.sources import DataFormat
from finetune_trainer.errors import TrainerError

_FORMAT_OF_SUFFIX = {
    ".jsonl": DataFormat.JSONL,
    ".ndjson": DataFormat.JSONL,
    ".csv": DataFormat.CSV,
    ".tsv": DataFormat.CSV,
    ".parquet": DataFormat.PARQUET,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data source."""

    place: str
    """Where it is, for people: "train.jsonl line 7"."""
    values: dict[str, Any]
    """Its columns."""


def read_file(path: Path, format: DataFormat | None) -> Iterator[Row]:
    """The rows of a file. Raises TrainerError (DATA_INVALID) naming the file and the line."""
    kind = format or _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise _invalid(
            f"{path}: the format cannot be told from the ending {path.suffix!r}",
            f"use {', '.join(_FORMAT_OF_SUFFIX)}, or set format to {', '.join(DataFormat)}",
        )
    if path.is_dir():
        raise _invalid(f"{path} is a directory", "name the file in it")
    reader = {DataFormat.JSONL: _read_jsonl, DataFormat.CSV: _read_csv, DataFormat.PARQUET: _read_parquet}[kind]
    try:
        yield from reader(path)
    except FileNotFoundError:
        raise _invalid(f"{path}: no such file", "check the uri, and that the volume holds it") from None
    except UnicodeDecodeError as error:
        raise _invalid(f"{path}: not UTF-8 text (byte {error.start})", "convert it to UTF-8") from None
    except PermissionError:
        raise _invalid(f"{path}: permission denied", "let the trainer's user read it") from None


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path.name} line {number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                detail = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise _invalid(f"{place}: not valid JSON: {detail}", "mend or remove that line") from None
            if not isinstance(values, dict):
                raise _invalid(
                    f"{place}: a JSON {type(values).__name__}, not an object",
                    'write one object a line, such as {"text": ..., "label": ...}',
                )
            yield Row(place, values)


def _read_csv(path: Path) -> Iterator[Row]:
    # Python's default limit of 128 KiB a field would refuse long documents.
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for values in reader:
                place = f"{path.name} line {reader.line_num}"
                if None in values:
                    raise _invalid(
                        f"{place}: more fields than the header has columns", "quote fields that hold a comma"
                    )
                yield Row(place, values)
        except csv.Error as error:
            raise _invalid(f"{path.name} line {reader.line_num}: not valid CSV: {error}", "mend that line") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    # Imported here because only parquet needs it, and it takes a third of a second.
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path.name} row {number}", values)
    except pyarrow.ArrowException as error:
        raise _invalid(f"{path}: not a valid parquet file: {error}", "write it again") from None


def _invalid(message: str, hint: str) -> TrainerError:
    return TrainerError(ExitCode.DATA_INVALID, message, hint)
