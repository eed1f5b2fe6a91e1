"""Readers of CoNLL and SQuAD files, and class numbers by their names: every fault with its place in one sentence."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.sources import DataFormat
from finetune_trainer.data.class_names import class_names, with_names
from finetune_trainer.data.formats import read_file
from trainer.data_fixtures import failure, write

CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
# NN I-NP O
"""


def read(path: Path, format: DataFormat | None = None) -> list[tuple[str, dict[str, Any]]]:
    return [(row.place, row.values) for row in read_file(path, format)]


def refused(path: Path, format: DataFormat | None = None) -> str:
    return failure(ExitCode.DATA_INVALID, lambda: read(path, format))


class TestConll:
    @pytest.mark.parametrize("ending", ["conll", "iob", "bio"])
    def test_usual_file(self, tmp_path: Path, ending: str) -> None:
        assert read(write(tmp_path / f"a.{ending}", CONLL)) == [
            ("line 3", {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
            ("line 6", {"tokens": ["Peter", "Blackburn", "#"], "tags": ["B-PER", "I-PER", "O"]}),
        ]

    def test_format_decides_over_the_ending(self, tmp_path: Path) -> None:
        assert read(write(tmp_path / "a.txt", "a O\nb O"), DataFormat.CONLL) == [
            ("line 1", {"tokens": ["a", "b"], "tags": ["O", "O"]})
        ]

    def test_tabs_let_a_word_hold_a_space(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", "\ufeffNew York\tB-LOC\r\n10 000\tO\r\n \t\r\n\r\nx\tO\r\n")
        assert read(path) == [
            ("line 1", {"tokens": ["New York", "10 000"], "tags": ["B-LOC", "O"]}),
            ("line 5", {"tokens": ["x"], "tags": ["O"]}),
        ]

    @pytest.mark.parametrize("blank", ["\u00a0", "\u202f", "\u3000", "\u2028", "\x85", "\x0c"])
    @pytest.mark.parametrize("column", [" ", "\t", "  "])
    def test_only_spaces_and_tabs_part_columns(self, tmp_path: Path, blank: str, column: str) -> None:
        lines = [f"10{blank}000{column}B-SUM", f"{blank}{column}I-SUM", f"euros{column}O"]
        assert read(write(tmp_path / "a.conll", "\r\n".join(lines))) == [
            ("line 1", {"tokens": [f"10{blank}000", blank, "euros"], "tags": ["B-SUM", "I-SUM", "O"]})
        ]

    @pytest.mark.parametrize("comment", ["# id 5239d808 domain=train", "# sent_id = 3", "# text = It is\n# x = y"])
    def test_comments_before_a_sentence(self, tmp_path: Path, comment: str) -> None:
        assert read(write(tmp_path / "a.conll", f"{comment}\nit _ _ O\n"))[0][1]["tokens"] == ["it"]

    def test_words_alone(self, tmp_path: Path) -> None:
        assert read(write(tmp_path / "a.conll", "one\ntwo\n\nthree\n")) == [
            ("line 1", {"tokens": ["one", "two"]}),
            ("line 4", {"tokens": ["three"]}),
        ]

    @pytest.mark.parametrize("content", ["", "\n\n", "-DOCSTART- -X- O O\n\n"])
    def test_no_sentences(self, tmp_path: Path, content: str) -> None:
        assert read(write(tmp_path / "a.conll", content)) == []

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("a O\nb\n", "line 2: 1 columns, but the first word's line has 2 (write a word a line"),
            ("a O\n\nb _ O\n", "line 3: 3 columns, but the first word's line has 2"),
            ("a\tO\nb\t\n", "line 2: no tag (write O where there is no entity)"),
            ("a\tO\n\tO\n", "line 2: no word"),
        ],
    )
    def test_faults(self, tmp_path: Path, content: str, said: str) -> None:
        path = write(tmp_path / "a.conll", content)
        assert refused(path).startswith(f"{path} {said}")

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", "a O\ncafé O\n".encode("latin-1"))
        assert refused(path).startswith(f"{path} line 2: not UTF-8 text")


def squad(*paragraphs: dict[str, Any]) -> str:
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": list(paragraphs)}]})


class TestSquad:
    def test_usual_file(self, tmp_path: Path) -> None:
        answers = [{"text": "Oslo", "answer_start": 3}, {"text": "in Oslo", "answer_start": 0}]
        found = {"id": "1", "question": "where?", "answers": answers, "is_impossible": False}
        none = {"id": "2", "question": "when?", "answers": [], "is_impossible": True}
        none["plausible_answers"] = [{"text": "Oslo", "answer_start": 3}]
        first = {"question": "who?", "answers": [{"text": "Ada", "answer_start": 0}]}  # of version 1.1, without an id
        content = squad({"context": "in Oslo", "qas": [found, none]}, {"context": "Ada", "qas": [first]})
        assert read(write(tmp_path / "a.json", content)) == [
            (
                "article 1 paragraph 1 question 1",
                {
                    "id": "1",
                    "question": "where?",
                    "context": "in Oslo",
                    "answers": {"text": ["Oslo", "in Oslo"], "answer_start": [3, 0]},
                },
            ),
            (
                "article 1 paragraph 1 question 2",
                {"id": "2", "question": "when?", "context": "in Oslo", "answers": {"text": [], "answer_start": []}},
            ),
            (
                "article 1 paragraph 2 question 1",
                {
                    "id": None,
                    "question": "who?",
                    "context": "Ada",
                    "answers": {"text": ["Ada"], "answer_start": [0]},
                },
            ),
        ]

    def test_impossible_goes_before_answers(self, tmp_path: Path) -> None:
        entry = {"question": "q", "answers": [{"text": "a", "answer_start": 0}], "is_impossible": True}
        [(_, row)] = read(write(tmp_path / "a.json", squad({"context": "a", "qas": [entry]})))
        assert row["answers"] == {"text": [], "answer_start": []}

    def test_without_answers(self, tmp_path: Path) -> None:
        [(_, row)] = read(write(tmp_path / "a.json", squad({"context": "a", "qas": [{"question": "q"}]})))
        assert row["answers"] is None

    @pytest.mark.parametrize(
        "content", ["[]", '{"data": {}}', '{"data": [{"context": "c"}]}', '{"data": [5]}', '{"rows": []}', "5"]
    )
    def test_another_form(self, tmp_path: Path, content: str) -> None:
        path = write(tmp_path / "a.json", content)
        if content == '{"data": {}}':
            assert read(path) == []  # no rows is said elsewhere
        else:
            assert refused(path).startswith(f"{path}: not SQuAD's form")

    @pytest.mark.parametrize("content", ['{"question": "a"}\n{"question": "b"}', "{", "", "[" * 100_000])
    def test_not_json(self, tmp_path: Path, content: str) -> None:
        sentence = refused(write(tmp_path / "a.json", content))
        assert "a.json: not valid JSON: " in sentence
        assert "write rows, one object a line, as .jsonl" in sentence


class TestClassNames:
    FEATURES = datasets.Features(
        {
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "text": datasets.Value("string"),
            "struct": {"feature": datasets.Value("string")},
        }
    )

    def test_of_columns_and_of_lists(self) -> None:
        assert class_names(self.FEATURES.to_dict()) == {"tags": ["O", "B-X"], "label": ["no", "yes"]}

    def test_of_lists_as_earlier_versions_write_them(self) -> None:
        label = {"names": ["O", "B-X"], "_type": "ClassLabel"}
        assert class_names({"a": [label], "b": {"feature": label, "length": -1, "_type": "Sequence"}}) == {
            "a": ["O", "B-X"],
            "b": ["O", "B-X"],
        }

    def test_numbers_without_a_name(self) -> None:
        row = {"tags": [1, -1, 2, None], "label": None, "text": "t"}
        named = with_names(row, class_names(self.FEATURES.to_dict()))
        assert named == {"tags": ["B-X", None, None, None], "label": None, "text": "t"}

    def test_parquet_of_the_library(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        row = {"tags": [0, 1], "label": 1, "text": "t", "struct": {"feature": "f"}}
        datasets.Dataset.from_list([row], features=self.FEATURES).to_parquet(path)
        assert read(path) == [("row 1", row | {"tags": ["O", "B-X"], "label": "yes"})]

    @pytest.mark.parametrize("metadata", [{}, {b"huggingface": b"{"}, {b"huggingface": b'{"info": null}'}])
    def test_other_parquet(self, tmp_path: Path, metadata: dict[bytes, bytes]) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist([{"tags": [0, 1]}]).replace_schema_metadata(metadata), path)
        assert read(path) == [("row 1", {"tags": [0, 1]})]
