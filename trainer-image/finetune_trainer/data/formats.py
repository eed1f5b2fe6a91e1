"""Reads rows from files of every format; every row knows its place, so that an error can name it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from finetune_api.exit_codes import ExitCode
from finetune_api.problems import nearest
from finetune_api.v1alpha1.sources import DataFormat
from finetune_trainer.data.class_names import class_names_in, with_names
from finetune_trainer.data.conll import read_sentences
from finetune_trainer.data.nested import without_invented_nulls
from finetune_trainer.data.squad import read_questions
from finetune_trainer.errors import TrainerError

_FORMAT_OF_SUFFIX = {
    ".jsonl": DataFormat.JSONL,
    ".ndjson": DataFormat.JSONL,
    ".csv": DataFormat.CSV,
    ".tsv": DataFormat.CSV,
    ".parquet": DataFormat.PARQUET,
    ".conll": DataFormat.CONLL,
    ".iob": DataFormat.CONLL,
    ".bio": DataFormat.CONLL,
    ".json": DataFormat.SQUAD,
}
_DELIMITERS = ",;\t"
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data source."""

    place: str
    """Where in the source it is, for people: "line 7"."""
    values: dict[str, Any]
    """Its columns."""


def read_file(path: Path, format: DataFormat | None) -> Iterator[Row]:
    """The rows of a file. Raises TrainerError (DATA_INVALID) naming the file and the line."""
    try:
        yield from _reader(path, format)(path)
    except FileNotFoundError:
        hint = _nearest_file(path) or "check the uri, and that the volume holds it"
        raise _invalid(f"{path}: no such file", hint) from None
    except PermissionError:
        raise _invalid(f"{path}: permission denied", "let the trainer's user read it") from None
    except UnicodeDecodeError as error:
        raise _invalid(
            f"{path} {_undecodable_place(path)}: not UTF-8 text ({error.reason})", "save it as UTF-8"
        ) from None
    except OSError as error:  # pyarrow says so too when pages are damaged
        raise _invalid(
            f"{path}: cannot be read: {error.strerror or _one_line(error)}", "write the file again, or copy it again"
        ) from None


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and cut to what fits there."""
    text = " ".join(value.split()) if isinstance(value, str) else repr(value)
    text = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    return repr(text) if isinstance(value, str) else text


def _reader(path: Path, format: DataFormat | None) -> Callable[[Path], Iterator[Row]]:
    path.stat()  # a file that is not there is told before an ending that says nothing
    if path.is_dir():
        files = sorted(child.name for child in path.iterdir() if child.suffix.lower() in _FORMAT_OF_SUFFIX)
        holds = f", such as {files[0]}" if files else ""
        raise _invalid(f"{path}: is a directory", f"name the file in it{holds}")
    if not path.is_file():
        raise _invalid(f"{path}: is not a regular file", "name a file; a pipe or a device may never end")
    if path.suffix.lower() in _PACKED:
        raise _invalid(f"{path}: is packed", "unpack it")
    kind = format or _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise _invalid(
            f"{path}: the format cannot be told from the ending {path.suffix!r}",
            f"use {', '.join(_FORMAT_OF_SUFFIX)}, or set format to {', '.join(DataFormat)}",
        )
    return {
        DataFormat.JSONL: _read_jsonl,
        DataFormat.CSV: _read_csv,
        DataFormat.PARQUET: _read_parquet,
        DataFormat.CONLL: _read_conll,
        DataFormat.SQUAD: _read_squad,
    }[kind]


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(f"line {number}", _json_object(line, f"{path} line {number}"))


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        values = _JSON.decode(line.strip())
    except json.JSONDecodeError as error:
        around = error.doc[max(0, error.pos - _SHOWN // 2) : error.pos + _SHOWN // 2]
        raise _invalid(
            f"{place}: not valid JSON: {error.msg} at column {error.pos + 1}, near {shown(around)}",
            _ONE_OBJECT_A_LINE if line.lstrip().startswith("[") else "mend or remove that line",
        ) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise _invalid(f"{place}: not valid JSON: {reason}", "mend or remove that line") from None
    if not isinstance(values, dict):
        raise _invalid(f"{place}: {shown(line)} is not a JSON object", _ONE_OBJECT_A_LINE)
    return values


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value, write null")


_JSON = json.JSONDecoder(parse_constant=_not_json)
_ONE_OBJECT_A_LINE = 'write one object a line, such as {"text": ..., "label": ...}'


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # Python's default of 128 KiB would refuse long documents
    with path.open(encoding="utf-8-sig", newline="") as file:
        records = _csv_records(path, csv.reader(file, delimiter=_delimiter(path), strict=True))
        header = _without_spaces(next(records, (0, []))[1])
        repeated = [name for name, count in Counter(header).items() if count > 1 and name]
        if repeated:
            raise _invalid(f"{path}: the header has {shown(repeated[0])} twice", "give every column a name of its own")
        for line, fields in records:
            if len(fields) > len(header):
                raise _invalid(
                    f"{path} line {line}: {len(fields)} fields, but the header names {len(header)} columns",
                    "quote fields that hold the delimiter",
                )
            missing = [None] * (len(header) - len(fields))
            yield Row(f"line {line}", dict(zip(header, [*fields, *missing], strict=True)))


def _without_spaces(header: list[str]) -> list[str]:
    """Names without the spaces around them, unless these tell two apart: many write one after each comma."""
    counts = Counter(name.strip() for name in header)
    return [short if counts[short := name.strip()] == 1 or not short else name for name in header]


def _delimiter(path: Path) -> str:
    """What is between the fields: commas, unless the header has none, but semicolons (as of spreadsheets) or tabs."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next((line for line in file if line.strip()), "")
    return next((one for one in _DELIMITERS if len(next(csv.reader([header], delimiter=one), [])) > 1), ",")


def _csv_records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, each with the line it starts on."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _invalid(
                f"{path} line {line}: not valid CSV: {error}", "close the quotes, and write a quote in them twice"
            ) from None
        if fields:
            yield line, fields


def _read_parquet(path: Path) -> Iterator[Row]:
    # Imported here because only parquet needs it, and it takes a third of a second.
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            repeated = [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]
            if repeated:
                raise _invalid(
                    f"{path}: has the column {shown(repeated[0])} twice", "give every column a name of its own"
                )
            names = class_names_in(file.schema_arrow.metadata)
            for batch in file.iter_batches(batch_size=4096):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", with_names(without_invented_nulls(values), names))
    except (pyarrow.ArrowException, OverflowError, UnicodeDecodeError) as error:
        place = f" after row {number}" if number else ""
        raise _invalid(f"{path}{place}: not a valid parquet file: {_one_line(error)}", "write it again") from None


def _read_conll(path: Path) -> Iterator[Row]:
    for line, words, tags in read_sentences(path):
        yield Row(f"line {line}", {"tokens": words} if tags is None else {"tokens": words, "tags": tags})


def _read_squad(path: Path) -> Iterator[Row]:
    for place, columns in read_questions(path):
        yield Row(place, columns)


def _undecodable_place(path: Path) -> str:
    """The line on which a file is no UTF-8. A decoder tells only the place in its buffer."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return f"line {number}"
    return "at its end"


def _nearest_file(path: Path) -> str:
    try:
        return nearest(path.name, [child.name for child in path.parent.iterdir()])
    except OSError:
        return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _invalid(message: str, hint: str) -> TrainerError:
    return TrainerError(ExitCode.DATA_INVALID, message, hint)
