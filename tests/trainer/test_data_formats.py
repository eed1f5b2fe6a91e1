"""Readers of jsonl, csv and parquet files: every row with its place, every fault in one sentence."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.sources import DataFormat
from finetune_trainer.data.formats import read_file, shown
from trainer.data_fixtures import failure, write


def rows(path: Path, format: DataFormat | None = None) -> list[tuple[str, dict[str, Any]]]:
    return [(row.place, row.values) for row in read_file(path, format)]


def refused(path: Path, format: DataFormat | None = None) -> str:
    """How reading a file fails; the file is always named."""
    sentence = failure(ExitCode.DATA_INVALID, lambda: list(read_file(path, format)))
    assert str(path) in sentence
    return sentence


class TestJsonl:
    def test_byte_order_mark_blank_lines_and_missing_last_newline(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\n  \t\n{"text": "b"}')
        assert rows(path) == [("line 1", {"text": "a"}), ("line 4", {"text": "b"})]

    def test_line_separators_of_unicode_end_no_line(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b\x85c"}\n{"text": "d"}\n')
        assert rows(path) == [("line 1", {"text": "a\u2028b\x85c"}), ("line 2", {"text": "d"})]

    def test_broken_line_is_told_with_number_column_and_what_is_there(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b", "label" 1}\n')
        assert refused(path) == (
            f"{path} line 3: not valid JSON: Expecting ':' delimiter at column 23, near "
            '\'text": "b", "label" 1}\' (mend or remove that line)'
        )

    def test_rows_before_a_broken_line_are_read(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a"}\n{')
        reader = read_file(path, None)
        assert next(reader).values == {"text": "a"}
        assert "line 2" in failure(ExitCode.DATA_INVALID, list, reader)

    @pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
    def test_numbers_that_json_lacks(self, tmp_path: Path, literal: str) -> None:
        path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": {literal}}}\n')
        assert f"line 1: not valid JSON: {literal} is not a JSON value, write null" in refused(path)

    @pytest.mark.parametrize("line", ['["a", 1]', '"text"', "1", "null", "true"])
    def test_a_value_that_is_no_object(self, tmp_path: Path, line: str) -> None:
        path = write(tmp_path / "a.jsonl", line + "\n")
        sentence = refused(path)
        assert f"{path} line 1: {shown(line)} is not a JSON object" in sentence
        assert 'write one object a line, such as {"text": ..., "label": ...}' in sentence

    def test_an_array_over_many_lines_is_told_apart(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", json.dumps([{"text": "a"}, {"text": "b"}], indent=1))
        assert "write one object a line" in refused(path)

    def test_deep_nesting(self, tmp_path: Path) -> None:
        depth = 200_000
        path = write(tmp_path / "a.jsonl", '{"text": ' + "[" * depth + "]" * depth + "}\n")
        assert "line 1: not valid JSON: nested too deeply" in refused(path)

    def test_an_integer_of_too_many_digits(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a", "label": ' + "9" * 5000 + "}\n")
        assert "line 1: not valid JSON: Exceeds the limit" in refused(path)

    def test_a_huge_line(self, tmp_path: Path) -> None:
        text = "word " * 4_000_000
        path = write(tmp_path / "a.jsonl", json.dumps({"text": text}) + "\n")
        [(place, values)] = rows(path)
        assert place == "line 1"
        assert values == {"text": text}

    def test_a_huge_broken_line_makes_a_short_message(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "' + "word " * 1_000_000 + '"\n')
        assert len(refused(path)) < 300

    def test_not_utf8_is_told_with_the_line_far_into_the_file(self, tmp_path: Path) -> None:
        good = b'{"text": "caf\xc3\xa9 ' + b"x" * 1000 + b'"}\n'
        path = write(tmp_path / "a.jsonl", good * 99 + '{"text": "café"}\n'.encode("latin-1"))
        assert refused(path) == f"{path} line 100: not UTF-8 text (invalid continuation byte) (save it as UTF-8)"

    def test_utf16(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a"}\n'.encode("utf-16"))
        assert "line 1: not UTF-8 text" in refused(path)

    def test_an_empty_file_has_no_rows(self, tmp_path: Path) -> None:
        assert rows(write(tmp_path / "a.jsonl", "")) == []


class TestCsv:
    def test_quotes_delimiters_and_newlines_in_fields(self, tmp_path: Path) -> None:
        content = 'text,label\r\n"one, ""two""",a\r\n"three\nfour\n",b\r\n\r\nfive,c\r\n"six\r\nseven",d\r\n'
        assert rows(write(tmp_path / "a.csv", content)) == [
            ("line 2", {"text": 'one, "two"', "label": "a"}),
            ("line 3", {"text": "three\nfour\n", "label": "b"}),
            ("line 7", {"text": "five", "label": "c"}),
            ("line 8", {"text": "six\r\nseven", "label": "d"}),
        ]

    def test_tabs(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.TSV", "text\tlabel\none, two\ta\n")
        assert rows(path) == [("line 2", {"text": "one, two", "label": "a"})]

    def test_byte_order_mark_before_a_quoted_header(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", b'\xef\xbb\xbf"text",label\na,b\n')
        assert rows(path) == [("line 2", {"text": "a", "label": "b"})]

    def test_carriage_returns_alone(self, tmp_path: Path) -> None:
        assert rows(write(tmp_path / "a.csv", "text,label\ra,b\r")) == [("line 2", {"text": "a", "label": "b"})]

    def test_a_missing_field_is_none(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\nonly text\n")
        assert rows(path) == [("line 2", {"text": "only text", "label": None})]

    def test_too_many_fields(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", 'text,label\n"a\nb",x\none, two,x\n')
        assert refused(path) == (
            f"{path} line 4: 3 fields, but the header names 2 columns (quote fields that hold the delimiter)"
        )

    def test_a_quote_that_is_never_closed_is_told_where_it_opens(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", 'text,label\na,x\n"b,x\nc,x\nd,x\n')
        assert f"{path} line 3: not valid CSV: unexpected end of data" in refused(path)

    def test_text_after_a_closing_quote(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", 'text,label\n"a" b,x\n')
        assert f"{path} line 2: not valid CSV" in refused(path)

    def test_without_header_the_first_line_is_taken_for_it(self, tmp_path: Path) -> None:
        assert rows(write(tmp_path / "a.csv", "a,x\nb,y\n")) == [("line 2", {"a": "b", "x": "y"})]

    def test_spaces_around_header_names(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text, label ,\tnote\n a, b,c\n")
        assert rows(path) == [("line 2", {"text": " a", "label": " b", "note": "c"})]

    def test_spaces_that_tell_two_names_apart(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "a,text,label, text, ,\na,b,c,d,e,f\n")
        assert rows(path) == [("line 2", {"a": "a", "text": "b", "label": "c", " text": "d", "": "f"})]

    def test_duplicated_header_names(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label,text\na,b,c\n")
        assert f"{path}: the header has 'text' twice" in refused(path)

    def test_columns_without_names_may_be_many(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label,,\na,b,,\n")
        assert rows(path) == [("line 2", {"text": "a", "label": "b", "": ""})]

    @pytest.mark.parametrize("content", ["", "\n\n", "text,label\n", "text,label"])
    def test_no_rows(self, tmp_path: Path, content: str) -> None:
        assert rows(write(tmp_path / "a.csv", content)) == []

    def test_a_long_field(self, tmp_path: Path) -> None:
        text = "word " * 100_000  # Python's own limit is 131,072 characters
        assert rows(write(tmp_path / "a.csv", f"text,label\n{text},a\n"))[0][1]["text"] == text

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\na,b\ncafé,b\n".encode("latin-1"))
        assert f"{path} line 3: not UTF-8 text" in refused(path)

    @pytest.mark.parametrize("delimiter", [";", "\t"])
    def test_other_delimiters_are_told_by_the_header(self, tmp_path: Path, delimiter: str) -> None:
        text = f'\ufeff"text"{delimiter}label\r\na, b{delimiter}c\r\n"d{delimiter}e"{delimiter}f\r\n'
        found = rows(write(tmp_path / "a.csv", text))
        assert [values for _, values in found] == [
            {"text": "a, b", "label": "c"}, {"text": f"d{delimiter}e", "label": "f"}
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("a;b,c\nd;e,f\n", {"a;b": "d;e", "c": "f"}),
            ('text\n"a;b\tc"\n', {"text": "a;b\tc"}),
            ('"a;b"\nc\n', {"a;b": "c"}),
        ],
    )
    def test_commas_come_first(self, tmp_path: Path, content: str, expected: dict[str, str]) -> None:
        assert [values for _, values in rows(write(tmp_path / "a.csv", content))] == [expected]

    def test_a_header_of_great_length(self, tmp_path: Path) -> None:
        [(_, values)] = rows(write(tmp_path / "a.csv", "x" * 200_000 + "\na\n"))
        assert values == {"x" * 200_000: "a"}


class TestParquet:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "a.parquet"

    def test_rows_and_types(self, path: Path) -> None:
        table = pa.table(
            {
                "text": ["one", None, "two"],
                "label": pa.array(["x", "y", "x"]).dictionary_encode(),
                "number": pa.array([1, None, 3], pa.int64()),
                "yes": [True, False, None],
                "nested": [{"a": [1, 2], "b": "c"}, None, {"a": [], "b": "d"}],
            }
        )
        pq.write_table(table, path)
        found = rows(path)
        assert [place for place, _ in found] == ["row 1", "row 2", "row 3"]
        assert [values for _, values in found] == table.to_pylist()
        assert found[0][1] == {
            "text": "one", "label": "x", "number": 1, "yes": True, "nested": {"a": [1, 2], "b": "c"}
        }  # fmt: skip

    def test_row_numbers_go_on_over_row_groups(self, path: Path) -> None:
        pq.write_table(pa.table({"text": [str(number) for number in range(10_000)]}), path, row_group_size=3000)
        assert [(place, values["text"]) for place, values in rows(path)] == [
            (f"row {number + 1}", str(number)) for number in range(10_000)
        ]

    def test_no_rows(self, path: Path) -> None:
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
        assert rows(path) == []

    @pytest.mark.parametrize("content", ["", "text,label\na,b\n", "PAR1" + "x" * 100 + "PAR1"])
    def test_not_parquet(self, path: Path, content: str) -> None:
        write(path, content)
        assert f"{path}: not a valid parquet file" in refused(path) or "cannot be read" in refused(path)

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    def test_truncated(self, path: Path, part: float) -> None:
        pq.write_table(pa.table({"text": [str(number) for number in range(1000)]}), path)
        content = path.read_bytes()
        write(path, content[: int(len(content) * part)])
        assert f"{path}: not a valid parquet file" in refused(path)

    def test_damaged_in_the_middle(self, path: Path) -> None:
        pq.write_table(pa.table({"text": [f"row {number}" for number in range(20_000)]}), path)
        content = bytearray(path.read_bytes())
        for start in (100, len(content) // 2):
            content[start : start + 50] = bytes(255 - byte for byte in content[start : start + 50])
        write(path, bytes(content))
        assert "write the file again, or copy it again" in refused(path)

    def test_two_columns_of_one_name(self, path: Path) -> None:
        table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
        pq.write_table(table, path)
        assert f"{path}: has the column 'text' twice" in refused(path)

    def test_a_value_that_python_lacks(self, path: Path) -> None:
        pq.write_table(pa.table({"text": ["a"], "time": pa.array([2**62], pa.timestamp("us"))}), path)
        assert f"{path}: not a valid parquet file: date value out of range" in refused(path)

    def test_text_that_is_not_utf8(self, path: Path) -> None:
        buffers = pa.array([b"ok", b"\xff\xfe"]).buffers()
        pq.write_table(pa.table({"text": pa.StringArray.from_buffers(2, buffers[1], buffers[2])}), path)
        assert f"{path}: not a valid parquet file: 'utf-8' codec" in refused(path)


class TestAnyFile:
    @pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.zip", "a.ZST"])
    def test_packed(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / name, "x")
        assert refused(path) == refused(path, DataFormat.JSONL) == f"{path}: is packed (unpack it)"

    def test_an_ending_that_says_nothing(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", '{"text": "a"}\n')
        assert refused(path) == (
            f"{path}: the format cannot be told from the ending '.txt' "
            "(use .jsonl, .ndjson, .csv, .tsv, .parquet, .conll, .iob, .bio, .json, "
            "or set format to JSONL, CSV, Parquet, CoNLL, SQuAD)"
        )
        assert rows(path, DataFormat.JSONL) == [("line 1", {"text": "a"})]

    def test_format_wins_over_the_ending(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", "text,label\na,b\n")
        assert rows(path, DataFormat.CSV) == [("line 2", {"text": "a", "label": "b"})]

    def test_no_such_file_names_one_like_it(self, tmp_path: Path) -> None:
        write(tmp_path / "train.jsonl", "")
        path = tmp_path / "trian.jsonl"
        assert refused(path) == f"{path}: no such file (did you mean train.jsonl?)"

    @pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a", "no/such/folder/a.csv"])
    def test_no_such_file(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        assert refused(path) == f"{path}: no such file (check the uri, and that the volume holds it)"

    @pytest.mark.parametrize("format", [None, DataFormat.JSONL])
    def test_a_directory(self, tmp_path: Path, format: DataFormat | None) -> None:
        path = tmp_path / "data.csv"
        path.mkdir()
        assert refused(path, format) == f"{path}: is a directory (name the file in it)"
        write(path / "train.parquet", "")
        assert "such as train.parquet" in refused(path, format)

    def test_a_file_taken_for_a_directory(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", "") / "b.jsonl"
        assert "cannot be read: Not a directory" in refused(path)

    def test_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        path = tmp_path / ("a" * 300 + ".jsonl")
        assert f"{path}: cannot be read: File name too long" in failure(
            ExitCode.DATA_INVALID, lambda: list(read_file(path, None))
        )

    @pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
    def test_permission_denied(self, tmp_path: Path, ending: str) -> None:
        path = write(tmp_path / f"a.{ending}", "")
        path.chmod(0)
        with nobody():
            assert refused(path) == f"{path}: permission denied (let the trainer's user read it)"


@contextmanager
def nobody() -> Iterator[None]:
    """Root may read anything, so the test gives that up for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("value", "text"),
    [("a\n  b", "'a b'"), ("x" * 50, "'" + "x" * 37 + "...'"), (0.5, "0.5"), (None, "None"), (["a"], "['a']")],
)
def test_shown(value: Any, text: str) -> None:
    assert shown(value) == text
