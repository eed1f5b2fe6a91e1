"""From rows to labelled texts: each row checked, each drop reported, each fault in one sentence."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.batching import Batch
from finetune_trainer.data.text_classification import LabelledText, load
from finetune_trainer.metrics import ClassificationMetrics
from finetune_trainer.tasks.text_classification import TextClassification
from trainer.data_fixtures import failure, labelled, run_on, write, write_jsonl

USUAL = labelled(("good one", "pos"), ("bad one", "neg"), ("fine one", "pos"), ("poor one", "neg"))
HELD = labelled(("good two", "pos"), ("bad two", "neg"))


def texts(rows: list[LabelledText]) -> list[tuple[str, str]]:
    return [(row.text, row.label) for row in rows]


class Files:
    """Training and evaluation rows in files of their own."""

    def __init__(self, directory: Path, train: list[Any], evaluation: list[Any] | None = HELD, **data: Any) -> None:
        self.train = write_jsonl(directory / "train.jsonl", train)
        self.evaluation = None if evaluation is None else write_jsonl(directory / "eval.jsonl", evaluation)
        self.run = run_on(self.train, self.evaluation, **data)

    def refused(self) -> str:
        return failure(ExitCode.DATA_INVALID, load, self.run)

    def train_labels(self) -> list[str]:
        return [row.label for row in load(self.run).rows.train.rows]


def test_usual_rows(tmp_path: Path) -> None:
    found = load(Files(tmp_path, USUAL).run)
    assert texts(found.rows.train.rows) == [(row["text"], row["label"]) for row in USUAL]
    assert texts(found.rows.evaluation.rows) == [("good two", "pos"), ("bad two", "neg")]
    assert [row.place for row in found.rows.train.rows] == ["line 1", "line 2", "line 3", "line 4"]
    assert found.labels == ("neg", "pos")
    assert [str(report) for report in found.rows.reports()] == [
        f"file://{tmp_path}/train.jsonl: 4 rows kept of 4 read",
        f"file://{tmp_path}/eval.jsonl: 2 rows kept of 2 read",
    ]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_all_formats_give_the_same(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"train.{ending}"
    rows = [{"text": f'text {number}, "so"', "label": number % 2} for number in range(8)]
    if ending == "jsonl":
        write_jsonl(path, rows)
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        quoted = [f'"{row["text"]}"'.replace('"so"', '""so""') for row in rows]
        mark = "\t" if ending == "tsv" else ","
        lines = [f"{text}{mark}{row['label']}" for text, row in zip(quoted, rows, strict=True)]
        write(path, f"text{mark}label\n" + "\n".join(lines) + "\n")
    found = load(run_on(path, path, deduplicate=False))
    assert texts(found.rows.train.rows) == [(row["text"], str(row["label"])) for row in rows]
    assert found.labels == ("0", "1")


class TestLabels:
    @pytest.mark.parametrize(
        ("values", "labels"),
        [
            (["b", " a ", "b", "a"], ("a", "b")),
            ([1, 0, 1, 0], ("0", "1")),
            ([True, False, True, False], ("false", "true")),
            (["1", 0, "1", "0"], ("0", "1")),
            ([10, 9, 2, 1], ("1", "2", "9", "10")),
            ([-1, 0, "+1", 2], ("-1", "0", "+1", "2")),
            (["10", "9", "x", "1"], ("1", "10", "9", "x")),
        ],
    )
    def test_names_and_their_order(self, tmp_path: Path, values: list[Any], labels: tuple[str, ...]) -> None:
        rows = [{"text": f"text {number}", "label": value} for number, value in enumerate(values)]
        found = load(Files(tmp_path, rows, [{"text": "other", "label": values[0]}]).run)
        assert found.labels == labels
        assert [row.label for row in found.rows.train.rows] == [
            str(value).strip().replace("T", "t").replace("F", "f") for value in values
        ]

    def test_whole_floats_are_integers(self, tmp_path: Path) -> None:
        """What pandas makes of integers where one of the column is missing; the others may be read from elsewhere."""
        table = pa.table({"text": [f"text {n}" for n in range(6)], "label": [1.0, 0.0, -0.0, float("nan"), 10.0, None]})
        pq.write_table(table, tmp_path / "train.parquet")
        held = write_jsonl(tmp_path / "held.jsonl", labelled(("a", 1), ("b", "0"), ("c", 10.0)))
        found = load(run_on(tmp_path / "train.parquet", held, maxDroppedFraction="0.5"))
        assert found.labels == ("0", "1", "10")
        assert [row.label for row in found.rows.train.rows] == ["1", "0", "0", "10"]
        assert [row.label for row in found.rows.evaluation.rows] == ["1", "0", "10"]
        assert "dropped 2: 2 without label (row 4, row 6)" in str(found.rows.reports()[0])

    @pytest.mark.parametrize(
        ("cells", "others", "labels", "named"),
        [
            (["1.0", "0.0", "", "1.0"], ["0", 1, 1.0, "1.0"], ("0", "1"), ["0", "1", "1", "1"]),
            (["1", "0", "2", "10"], ["1.0", "10.0"], ("0", "1", "2", "10"), ["1", "10"]),
            (["-1.0", "-0.0", "3", "0"], [-1, "3.00"], ("-1", "0", "3"), ["-1", "3"]),
            (
                ["True", "False", "True", ""],
                [True, False, "true", "True"],
                ("False", "True"),
                ["True", "False"] + ["True"] * 2,
            ),
            (["true", "false", "maybe", ""], ["TRUE", "maybe"], ("false", "maybe", "true"), ["true", "maybe"]),
            (["1.0", "1.1", "2.0", ""], ["2.0", 1, 2.0], ("1.0", "1.1", "2.0"), ["2.0", "1.0", "2.0"]),
            (["01", "1", "02", "2"], ["01", 1], ("01", "1", "02", "2"), ["01", "1"]),
        ],
    )
    def test_a_tables_spelling_is_that_of_others(
        self, tmp_path: Path, cells: list[str], others: list[Any], labels: tuple[str, ...], named: list[str]
    ) -> None:
        """CSV has no types: what pandas writes of whole numbers beside a missing one, and of booleans."""
        lines = [f"text {number},{cell}\n" for number, cell in enumerate(cells)]
        train = write(tmp_path / "train.csv", "text,label\n" + "".join(lines))
        held, earlier = (
            write_jsonl(
                tmp_path / f"{name}.jsonl", labelled(*((f"{name} {n}", value) for n, value in enumerate(others)))
            )
            for name in ("held", "earlier")
        )
        replay = {"source": {"uri": f"file://{earlier}"}, "fraction": "0.5"}
        found = load(run_on(train, held, replay=replay, maxDroppedFraction="0.5"))
        assert found.labels == labels
        assert {row.label for row in found.rows.train.rows} == set(labels)
        assert [row.label for row in found.rows.evaluation.rows] == named
        assert found.rows.replay is not None
        assert {row.label for row in found.rows.replay.rows} <= set(named)

    def test_what_pandas_writes(self, tmp_path: Path) -> None:
        import pandas

        table = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1, None, 0]})
        table.to_csv(tmp_path / "train.csv", index=False)
        pandas.DataFrame({"text": ["d", "e"], "label": [1, 0]}).to_csv(tmp_path / "held.csv", index=False)
        found = load(run_on(tmp_path / "train.csv", tmp_path / "held.csv", maxDroppedFraction="0.5"))
        assert found.labels == ("0", "1")
        assert [row.label for row in found.rows.evaluation.rows] == ["1", "0"]

    @pytest.mark.parametrize("value", [None, "", "  \t"])
    def test_none_and_blank_are_no_label(self, tmp_path: Path, value: Any) -> None:
        files = Files(tmp_path, [*USUAL, {"text": "who knows", "label": value}], maxDroppedFraction="0.2")
        found = load(files.run)
        assert texts(found.rows.train.rows) == [(row["text"], row["label"]) for row in USUAL]
        assert str(found.rows.reports()[0]).endswith("4 rows kept of 5 read; dropped 1: 1 without label (line 5)")

    @pytest.mark.parametrize(("value", "kind"), [(0.5, "float"), (1e16, "float"), (["a"], "list"), ({"a": 1}, "dict")])
    def test_other_types_are_refused(self, tmp_path: Path, value: Any, kind: str) -> None:
        files = Files(tmp_path, [*USUAL, {"text": "who knows", "label": value}])
        assert files.refused() == (
            f"file://{files.train} line 5: the label {value!r} is of type {kind}, not a string, whole number or "
            "boolean (write labels as names; is 'label' the right column for data.columns.label?)"
        )

    def test_only_in_evaluation(self, tmp_path: Path) -> None:
        files = Files(tmp_path, USUAL, [*HELD, *labelled(("so so", "neutral"), ("hm", "Pos"), ("well", "neutral"))])
        assert files.refused() == (
            f"file://{files.evaluation} line 3: labels that the training data never shows: 'neutral' (2 rows), "
            "'Pos' (1 rows); it has 'neg', 'pos' (put rows of every label into the training data)"
        )

    def test_another_spelling_in_evaluation(self, tmp_path: Path) -> None:
        assert "(did you mean pos?)" in Files(tmp_path, USUAL, labelled(("x", "Pos"))).refused()

    def test_only_one(self, tmp_path: Path) -> None:
        files = Files(tmp_path, labelled(("a", "pos"), ("b", "pos")))
        assert files.refused() == (
            f"file://{files.train}: 2 rows kept of 2 read; the only label is 'pos' "
            "(classification needs rows of at least two labels)"
        )

    def test_far_too_many(self, tmp_path: Path) -> None:
        rows = [{"text": f"text {number}", "label": f"id-{number}"} for number in range(10_001)]
        assert "10001 different labels (at most 10000" in Files(tmp_path, rows, rows[:1], deduplicate=False).refused()


class TestColumns:
    def test_given_names(self, tmp_path: Path) -> None:
        rows = [{"body": row["text"], "queue": row["label"], "text": 1} for row in [*USUAL, *HELD]]
        files = Files(tmp_path, rows[:4], rows[4:], columns={"text": "body", "label": "queue"})
        assert texts(load(files.run).rows.train.rows) == [(row["text"], row["label"]) for row in USUAL]

    def test_wrong_name_is_told_with_the_nearest(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [{"Text": "a", "sentiment": "b"}])
        assert files.refused() == (
            f"file://{files.train} line 1: no column 'text'; it has 'Text', 'sentiment' "
            "(set data.columns.text; did you mean Text?)"
        )

    @pytest.mark.parametrize("source", ["evaluation", "unlabeled"])
    def test_another_source_is_to_be_renamed(self, tmp_path: Path, source: str) -> None:
        train = write_jsonl(tmp_path / "train.jsonl", [{"Body": row["text"], "label": row["label"]} for row in USUAL])
        path = write_jsonl(tmp_path / "other.jsonl", [{"body": row["text"], "label": row["label"]} for row in HELD])
        other: dict[str, Any] = {source: path if source == "evaluation" else {"uri": f"file://{path}"}}
        run = run_on(train, columns={"text": "Body"}, **other)
        assert failure(ExitCode.DATA_INVALID, load, run) == (
            f"file://{path} line 1: no column 'Body'; it has 'body', 'label' "
            "(rename the column there to 'Body': all sources share data.columns, and the training rows fit it)"
        )

    def test_nothing_near(self, tmp_path: Path) -> None:
        sentence = Files(tmp_path, [{"text": "a", "y": "b"}]).refused()
        assert "no column 'label'; it has 'text', 'y' (set data.columns.label; it names the column to read)" in sentence

    def test_spaces_around_a_name_are_shown(self, tmp_path: Path) -> None:
        assert (
            "no column 'label'; it has 'text', ' label' (set"
            in Files(tmp_path, [{"text": "a", " label": "b"}]).refused()
        )

    @pytest.mark.parametrize("header", ["text, label", "text,label", "text, label ,other"])
    def test_spaces_around_a_name_may_be_named_too(self, tmp_path: Path, header: str) -> None:
        lines = [f"{row['text']},{row['label']}" for row in (*USUAL, *HELD)]
        train = write(tmp_path / "train.csv", "\n".join([header, *lines[:4]]))
        held = write(tmp_path / "held.csv", "\n".join([header, *lines[4:]]))
        found = load(run_on(train, held, columns={"label": " label"}))
        assert found.labels == ("neg", "pos")

    def test_of_two_names_that_spaces_tell_apart_the_exact_one_is_read(self, tmp_path: Path) -> None:
        rows = [f"{row['text']},{row['label']},{number}" for number, row in enumerate(USUAL)]
        path = write(tmp_path / "train.csv", "\n".join(["text,label, label", *rows]))
        for column, labels in {"label": ("neg", "pos"), " label": ("0", "1", "2", "3")}.items():
            assert load(run_on(path, path, columns={"label": column}, deduplicate=False)).labels == labels

    def test_an_empty_object(self, tmp_path: Path) -> None:
        assert "no column 'text'; it has none" in Files(tmp_path, [{}]).refused()

    def test_a_file_without_header(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "I like it,1\nI do not,0\n")
        sentence = failure(ExitCode.DATA_INVALID, load, run_on(path))
        assert f"file://{path} line 2: no column 'text'; it has 'I like it', '1'" in sentence

    def test_hundreds_of_columns_make_a_short_message(self, tmp_path: Path) -> None:
        assert len(Files(tmp_path, [{f"column {n} {'x' * 500}": n for n in range(500)}]).refused()) < 700

    def test_a_later_row_may_leave_the_label_out(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, [*USUAL, {"text": "who knows"}], maxDroppedFraction="0.2").run)
        assert str(found.rows.reports()[0]).endswith("dropped 1: 1 without label (line 5)")


class TestText:
    @pytest.mark.parametrize("value", [None, "", " \t\n", "\u00a0\u2003"])
    def test_empty_is_dropped(self, tmp_path: Path, value: Any) -> None:
        found = load(Files(tmp_path, [*labelled((value, "pos")), *USUAL], maxDroppedFraction="0.2").run)
        assert str(found.rows.reports()[0]).endswith("4 rows kept of 5 read; dropped 1: 1 with empty text (line 1)")

    def test_all_empty(self, tmp_path: Path) -> None:
        files = Files(tmp_path, labelled(("", "pos"), (" ", "neg"), (None, "pos"), ("", "neg")))
        assert files.refused() == (
            f"file://{files.train}: 0 rows kept of 4 read; dropped 4: 4 with empty text (line 1, line 2, line 3, ...); "
            "all rows are unusable (mend the rows, or set data.columns to the right ones)"
        )

    @pytest.mark.parametrize(("value", "kind"), [(5, "int"), (True, "bool"), (["a", "b"], "list"), (0.5, "float")])
    def test_other_types_are_refused(self, tmp_path: Path, value: Any, kind: str) -> None:
        files = Files(tmp_path, [*USUAL, {"text": value, "label": "pos"}])
        assert files.refused() == (
            f"file://{files.train} line 5: the text {value!r} is of type {kind}, not a string "
            "(is 'text' the right column for data.columns.text?)"
        )

    def test_half_an_emoji_is_dropped(self, tmp_path: Path) -> None:
        rows = [*USUAL, {"text": "cut \ud83d", "label": "pos"}, {"text": "whole \U0001f600", "label": "pos"}]
        found = load(Files(tmp_path, rows, maxDroppedFraction="0.2").run)
        assert found.rows.train.rows[-1].text == "whole \U0001f600"
        assert str(found.rows.reports()[0]).endswith("dropped 1: 1 with half a character (line 5)")

    def test_pairs(self, tmp_path: Path) -> None:
        rows = [
            {"first": f"premise {n}", "second": None if n == 3 else f"claim {n}", "label": "ab"[n % 2]}
            for n in range(20)
        ]
        columns = {"text": "first", "textPair": "second"}
        found = load(Files(tmp_path, rows, rows[:2], columns=columns, deduplicate=False, maxDroppedFraction="0.1").run)
        assert [(row.text, row.pair) for row in found.rows.train.rows[:4]] == [
            ("premise 0", "claim 0"), ("premise 1", "claim 1"), ("premise 2", "claim 2"), ("premise 4", "claim 4")
        ]  # fmt: skip
        assert "1 with empty text (line 4)" in str(found.rows.reports()[0])

    def test_a_pair_of_another_type(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [{"text": "a", "b": 3, "label": "x"}], columns={"textPair": "b"})
        assert "line 1: the textPair 3 is of type int, not a string (is 'b' the right column" in files.refused()


class TestDroppedFraction:
    ROWS = labelled(*((f"text {n}", "ab"[n % 2]) for n in range(19)), ("", "a"))

    def test_at_the_limit(self, tmp_path: Path) -> None:
        assert len(load(Files(tmp_path, self.ROWS, self.ROWS[:2], deduplicate=False).run).rows.train.rows) == 19

    def test_above(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [*self.ROWS, {"text": "x", "label": None}])
        assert files.refused() == (
            f"file://{files.train}: 19 rows kept of 21 read; dropped 2: 1 with empty text (line 20), "
            "1 without label (line 21); 9.5% of the rows are unusable "
            "(mend the rows, or raise data.maxDroppedFraction (now 0.05))"
        )

    def test_raised(self, tmp_path: Path) -> None:
        rows = [*self.ROWS, {"text": "x", "label": None}]
        assert (
            len(load(Files(tmp_path, rows, labelled(("y", "a")), maxDroppedFraction="0.1").run).rows.train.rows) == 19
        )

    def test_none_are_allowed(self, tmp_path: Path) -> None:
        assert "5.0% of the rows are unusable" in Files(tmp_path, self.ROWS, maxDroppedFraction="0").refused()

    def test_repeats_do_not_count(self, tmp_path: Path) -> None:
        files = Files(tmp_path, USUAL * 10, maxDroppedFraction="0")
        assert len(load(files.run).rows.train.rows) == 4

    def test_in_the_evaluation_data(self, tmp_path: Path) -> None:
        files = Files(tmp_path, USUAL, [*HELD, {"text": "", "label": "pos"}])
        assert f"file://{files.evaluation}: 2 rows kept of 3 read" in files.refused()


class TestDuplicates:
    def test_repeats_go_and_the_first_stays(self, tmp_path: Path) -> None:
        rows = [*USUAL, *labelled(("Good  ONE!", "pos"), ("good one", "neg"), ("bad one.", "neg"))]
        found = load(Files(tmp_path, rows).run)
        assert texts(found.rows.train.rows) == [(row["text"], row["label"]) for row in USUAL]
        assert str(found.rows.reports()[0]).endswith(
            "4 rows kept of 7 read; dropped 3: 2 repeated (line 5, line 7), 1 repeated with another label (line 6)"
        )

    def test_evaluation_rows_are_not_trained_on(self, tmp_path: Path) -> None:
        rows = [*USUAL, *labelled(("GOOD two", "pos"), ("bad two", "pos"))]
        found = load(Files(tmp_path, rows).run)
        assert texts(found.rows.train.rows) == [(row["text"], row["label"]) for row in USUAL]
        assert str(found.rows.reports()[0]).endswith("dropped 2: 2 also in the evaluation data (line 5, line 6)")
        assert len(found.rows.evaluation.rows) == 2

    def test_retention_rows_are_not_trained_on(self, tmp_path: Path) -> None:
        """Or the gate would be passed by what was learnt by heart."""
        earlier = write_jsonl(tmp_path / "earlier.jsonl", labelled(("Bad ONE.", "neg"), ("old one", "pos")))
        found = load(Files(tmp_path, USUAL, retention=earlier).run)
        assert [row.text for row in found.rows.train.rows] == ["good one", "fine one", "poor one"]
        assert str(found.rows.train.report).endswith(
            "3 rows kept of 4 read; dropped 1: 1 also in the retention data (line 2)"
        )
        assert found.rows.retention is not None
        assert len(found.rows.retention.rows) == 2
        assert len(load(Files(tmp_path, USUAL, retention=earlier, deduplicate=False).run).rows.train.rows) == 4

    def test_nothing_but_retention_rows(self, tmp_path: Path) -> None:
        earlier = write_jsonl(tmp_path / "earlier.jsonl", USUAL)
        files = Files(tmp_path, USUAL, None, retention=earlier)
        assert "dropped 4: 4 also in the retention data (line 1, line 2, line 3, ...); no training rows are left (" in (
            files.refused()
        )

    def test_kept_when_asked(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, [*USUAL, *USUAL, *HELD], deduplicate=False).run)
        assert len(found.rows.train.rows) == 10
        assert str(found.rows.reports()[0]).endswith("10 rows kept of 10 read")

    def test_the_same_file_for_both(self, tmp_path: Path) -> None:
        files = Files(tmp_path, USUAL, USUAL)
        assert files.refused().startswith(
            f"file://{files.train}: 0 rows kept of 4 read; dropped 4: 4 also in the evaluation data "
            "(line 1, line 2, line 3, ...); no training rows are left ("
        )

    def test_pairs_are_compared_as_pairs(self, tmp_path: Path) -> None:
        pairs = [("a", "b"), ("a", "c"), ("a b", "c"), ("a", "b c"), ("A", "B!")]
        rows = [{"text": first, "other": second, "label": "xy"[n % 2]} for n, (first, second) in enumerate(pairs)]
        held = [{"text": "z", "other": "z", "label": "x"}]
        found = load(Files(tmp_path, rows, held, columns={"textPair": "other"}).run)
        assert [(row.text, row.pair) for row in found.rows.train.rows] == pairs[:4]


class TestHoldingOut:
    ROWS = labelled(*((f"text {n}", "abc"[n % 3]) for n in range(100)))

    def test_a_tenth_by_default(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, self.ROWS, None).run)
        assert (len(found.rows.train.rows), len(found.rows.evaluation.rows)) == (90, 10)
        [report] = found.rows.reports()
        assert str(report).endswith("100 rows kept of 100 read, 10 of them held out for evaluation")

    def test_the_fraction_asked_for(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, self.ROWS, None, splitFraction="0.35").run)
        assert (len(found.rows.train.rows), len(found.rows.evaluation.rows)) == (65, 35)

    def test_too_few_rows(self, tmp_path: Path) -> None:
        files = Files(tmp_path, labelled(("a", "x"), ("b", "y")), None)
        assert files.refused() == (
            f"file://{files.train}: of 2 usable rows with 2 labels none can be held out for evaluation "
            "(give data.evaluation, or at least two different texts for every label)"
        )

    def test_repeats_are_gone_first(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, self.ROWS * 2, None).run)
        assert (len(found.rows.train.rows), len(found.rows.evaluation.rows)) == (90, 10)


class TestNoRows:
    @pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", "text,label\n")])
    def test_training(self, tmp_path: Path, name: str, content: str) -> None:
        path = write(tmp_path / name, content)
        sentence = failure(ExitCode.DATA_INVALID, load, run_on(path))
        assert sentence == f"file://{path}: no rows (the file is empty; check the uri)"

    def test_evaluation(self, tmp_path: Path) -> None:
        files = Files(tmp_path, USUAL, [])
        assert files.refused().startswith(f"file://{files.evaluation}: no rows")

    def test_missing_evaluation_file(self, tmp_path: Path) -> None:
        train = write_jsonl(tmp_path / "train.jsonl", USUAL)
        assert failure(ExitCode.DATA_INVALID, load, run_on(train, tmp_path / "eval.jsonl")).startswith(
            f"{tmp_path}/eval.jsonl: no such file"
        )


def test_majority_is_of_the_training_rows(tmp_path: Path) -> None:
    train = labelled(("a", "x"), ("b", "x"), ("c", "y"))
    evaluation = labelled(("d", "y"), ("e", "y"), ("f", "x"), ("g", "y"))
    assert load(Files(tmp_path, train, evaluation).run).majority() == {"accuracy": 0.25, "macroF1": 0.4 / 2}


@pytest.mark.parametrize("evaluation", ["x", "y", "xy", "xxyz", "yz", "xyyyzz"])
def test_the_majority_is_measured_as_a_model_is(tmp_path: Path, evaluation: str) -> None:
    train = labelled(("a", "x"), ("b", "x"), ("c", "y"), ("d", "z"))
    rows = labelled(*((f"row {number}", label) for number, label in enumerate(evaluation)))
    found = load(Files(tmp_path, train, rows).run)
    metrics = ClassificationMetrics(3)
    targets = torch.tensor([found.labels.index(row.label) for row in found.rows.evaluation.rows])
    says_x = torch.tensor([1.0, 0.0, 0.0]).expand(len(targets), 3)
    metrics.update([], Batch({}, targets, 0), says_x, loss_sum=0.0)
    assert found.majority() == {name: pytest.approx(metrics.compute()[name]) for name in ("accuracy", "macroF1")}


@pytest.mark.parametrize(("metric", "baseline"), [(None, 0.25), ("accuracy", 0.25), ("macroF1", 0.2), ("loss", None)])
def test_the_baseline_is_of_the_metric_that_decides(
    tiny_bert: Path, tmp_path: Path, metric: str | None, baseline: float | None
) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", labelled(("a", "x"), ("b", "x"), ("c", "y")))
    rows = write_jsonl(tmp_path / "rows.jsonl", labelled(("d", "y"), ("e", "y"), ("f", "x"), ("g", "y")))
    content = run_on(train, rows, model=tiny_bert).model_dump(mode="json", by_alias=True)
    content["spec"]["evaluation"]["metric"] = metric
    run = Run.model_validate_json(json.dumps(content))
    assert TextClassification.read(run, tiny_bert).baseline == (baseline and pytest.approx(baseline))


def test_the_same_rows_every_time(tmp_path: Path) -> None:
    run = Files(tmp_path, TestHoldingOut.ROWS, None).run
    assert load(run) == load(run)
    assert json.loads(json.dumps([str(report) for report in load(run).rows.reports()]))
