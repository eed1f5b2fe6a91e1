"""From rows to tagged words: each row checked, each drop reported, each fault in one sentence."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.training import EvaluationSpec
from finetune_trainer.data.token_classification import TaggedWords, load
from trainer.data_fixtures import failure, run_on, write, write_jsonl

TASK = "TokenClassification"


def row(text: str) -> dict[str, Any]:
    """A text such as Ada/B-PER sings as a row; a word without a tag is O."""
    parts = [part.partition("/") for part in text.split()]
    return {"tokens": [word for word, _, _ in parts], "tags": [tag or "O" for _, _, tag in parts]}


USUAL = [row("Ada/B-PER sings"), row("in Oslo/B-LOC"), row("Kari/B-PER Nord/I-PER sleeps"), row("it rains")]
HELD = [row("Ole/B-PER reads"), row("to Bergen/B-LOC")]


def texts(rows: list[TaggedWords]) -> list[tuple[str, str]]:
    return [(" ".join(row.words), " ".join(row.tags or ())) for row in rows]


class Files:
    """Training and evaluation rows in files of their own."""

    def __init__(self, directory: Path, train: list[Any], evaluation: list[Any] | None = HELD, **data: Any) -> None:
        self.train = write_jsonl(directory / "train.jsonl", train)
        self.evaluation = None if evaluation is None else write_jsonl(directory / "eval.jsonl", evaluation)
        self.run = run_on(self.train, self.evaluation, task=TASK, **data)

    def refused(self) -> str:
        return failure(ExitCode.DATA_INVALID, load, self.run)

    def report(self) -> str:
        return str(load(self.run).rows.train.report)


def test_usual_rows(tmp_path: Path) -> None:
    found = load(Files(tmp_path, USUAL).run)
    assert texts(found.rows.train.rows) == [
        ("Ada sings", "B-PER O"), ("in Oslo", "O B-LOC"), ("Kari Nord sleeps", "B-PER I-PER O"), ("it rains", "O O")
    ]  # fmt: skip
    assert texts(found.rows.evaluation.rows) == [("Ole reads", "B-PER O"), ("to Bergen", "O B-LOC")]
    assert found.tags == ("O", "B-LOC", "B-PER", "I-PER")


def test_all_formats_give_the_same(tmp_path: Path) -> None:
    expected = load(Files(tmp_path, USUAL).run)
    names = list(expected.tags)
    numbered = [{**row, "tags": [names.index(tag) for tag in row["tags"]]} for row in USUAL]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    datasets.Dataset.from_list(numbered, features=features).to_parquet(tmp_path / "hub.parquet")
    pq.write_table(pa.Table.from_pylist(USUAL), tmp_path / "train.parquet")
    lines = ["\n".join(map(" ".join, zip(row["tokens"], row["tags"], strict=True))) for row in USUAL]
    write(tmp_path / "train.conll", "\n\n".join(lines) + "\n")
    for name in ("hub.parquet", "train.parquet", "train.conll"):
        found = load(run_on(tmp_path / name, tmp_path / "eval.jsonl", task=TASK))
        assert texts(found.rows.train.rows) == texts(expected.rows.train.rows), name
        assert found.tags == expected.tags


def test_columns_by_other_names(tmp_path: Path) -> None:
    rows = [{"words": row["tokens"], "ner": row["tags"]} for row in [*USUAL, *HELD]]
    files = Files(tmp_path, rows[:4], rows[4:], columns={"tokens": "words", "tags": "ner"})
    assert texts(load(files.run).rows.train.rows)[0] == ("Ada sings", "B-PER O")


class TestTags:
    def test_unknown_in_evaluation(self, tmp_path: Path) -> None:
        files = Files(tmp_path, USUAL, [*HELD, row("the Nile/B-RIVER"), row("per/B-Per")])
        assert files.refused() == (
            f"file://{files.evaluation} line 3: tags that the training data never shows: 'B-RIVER' (1 words), "
            "'B-Per' (1 words); it has 'B-LOC', 'B-PER', 'I-PER', 'O' (did you mean B-PER?)"
        )

    def test_unlike_any_other(self, tmp_path: Path) -> None:
        sentence = Files(tmp_path, USUAL, [row("x/Event")]).refused()
        assert sentence.endswith("(put rows of every tag into the training data)")

    def test_another_tag_of_a_known_type_is_learnt_as_a_class(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, USUAL, [row("New/B-LOC York/I-LOC")]).run)
        assert found.tags == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")

    def test_plain_tags(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, [row("Ada/Name sings"), row("in Oslo/City")], [row("Ole/Name")]).run)
        assert found.tags == ("O", "City", "Name")

    def test_some_with_prefixes_and_some_without(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [*USUAL, row("Nile/RIVER")])
        assert files.refused() == (
            f"file://{files.train}: some tags begin with B- and I-, but 'RIVER' does not "
            "(write all tags but O with a prefix, or none)"
        )

    def test_plain_tags_that_look_like_one_with_a_prefix(self, tmp_path: Path) -> None:
        rows = [row("a@b/E-mail"), row("Ada/Name x")]
        assert load(Files(tmp_path, rows, rows[:1], deduplicate=False).run).tags == ("O", "E-mail", "Name")

    def test_only_one(self, tmp_path: Path) -> None:
        assert "the only tag is 'O' (token classification needs" in Files(tmp_path, [row("a b")], [row("c")]).refused()

    def test_far_too_many(self, tmp_path: Path) -> None:
        rows = [row(" ".join(f"w/tag{n}" for n in range(10_001)))]
        assert "10001 different tags (at most 10000" in Files(tmp_path, rows, rows, deduplicate=False).refused()

    @pytest.mark.parametrize(("value", "kind"), [(3, "int"), (True, "bool"), (0.5, "float"), (["a"], "list")])
    def test_no_names(self, tmp_path: Path, value: Any, kind: str) -> None:
        files = Files(tmp_path, [*USUAL, {"tokens": ["a", "b"], "tags": ["O", value]}])
        assert files.refused() == (
            f"file://{files.train} line 5: {value!r} among the tags is of type {kind}, not a string "
            "(write tags by name, such as B-PER; is 'tags' the right column for data.columns.tags?)"
        )


class TestDroppedRows:
    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            ({"tokens": [], "tags": []}, "without words"),
            ({"tokens": None, "tags": ["O"]}, "without words"),
            ({"tokens": ["", " \t"], "tags": ["O", "O"]}, "without words"),
            ({"tokens": ["a", None], "tags": ["O", "O"]}, "with a word that is null"),
            ({"tokens": ["a"], "tags": None}, "without tags"),
            ({"tokens": ["a"]}, "without tags"),
            ({"tokens": ["a", "b"], "tags": ["O", None]}, "with a word without a tag"),
            ({"tokens": ["a", "b"], "tags": ["O", " "]}, "with a word without a tag"),
            ({"tokens": ["a", "b"], "tags": ["O"]}, "with another number of tags than of words"),
            ({"tokens": ["a"], "tags": ["O", "O"]}, "with another number of tags than of words"),
            ({"tokens": ["cut \ud83d"], "tags": ["O"]}, "with half a character"),
        ],
    )
    def test_are_told_with_their_place(self, tmp_path: Path, bad: dict[str, Any], said: str) -> None:
        files = Files(tmp_path, [*USUAL, bad], maxDroppedFraction="0.2")
        assert files.report().endswith(f"4 rows kept of 5 read; dropped 1: 1 {said} (line 5)")
        assert f"1 {said} (line 5); 20.0% of the rows are unusable" in Files(tmp_path, [*USUAL, bad]).refused()

    def test_repeats(self, tmp_path: Path) -> None:
        rows = [*USUAL, row("ADA/B-PER sings,"), row("ole reads")]
        said = "4 rows kept of 6 read; dropped 2: 1 repeated (line 5), 1 also in the evaluation data (line 6)"
        assert Files(tmp_path, rows).report().endswith(said)

    @pytest.mark.parametrize(("value", "kind"), [("Ada sings", "str"), ({"a": 1}, "dict"), (5, "int")])
    def test_no_list_is_refused(self, tmp_path: Path, value: Any, kind: str) -> None:
        files = Files(tmp_path, [{"tokens": value, "tags": ["O"]}])
        assert files.refused() == (
            f"file://{files.train} line 1: the tokens {value!r} is of type {kind}, not a list of strings "
            "(is 'tokens' the right column for data.columns.tokens?)"
        )

    def test_a_wrong_column(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [{"token": ["a"], "tags": ["O"]}])
        assert "line 1: no column 'tokens'; it has 'token', 'tags' (set data.columns.tokens; did you" in files.refused()


class TestHoldingOut:
    def test_every_type_stays_in_training(self, tmp_path: Path) -> None:
        rows = [row(f"word{n}/B-T{n % 30} x/I-T{n % 30}") for n in range(40)]
        for seed in range(10):
            path = write_jsonl(tmp_path / "train.jsonl", rows)
            run = run_on(path, task=TASK, splitFraction="0.3")
            run = run.model_copy(
                update={
                    "spec": run.spec.model_copy(
                        update={"training": run.spec.training.model_copy(update={"seed": seed})}
                    )
                }
            )
            found = load(run)
            assert {tag for one in found.rows.train.rows for tag in one.tags or ()} >= set(found.tags)
            held = len(found.rows.evaluation.rows)
            assert 1 <= held <= 12
            assert len(found.rows.train.rows) + held == 40
            assert f"40 rows kept of 40 read, {held} of them held out" in str(found.rows.train.report)

    def test_none_can_be_spared(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [row(f"a{n}/B-T{n}") for n in range(4)], None)
        assert "every row that would be held out for evaluation has tags that no other row has" in files.refused()


def test_unlabeled_rows_need_no_tags(tmp_path: Path) -> None:
    unlabeled = write(tmp_path / "more.conll", "one\ntwo\n\nAda\nsings\n\nole\nreads\n")
    found = load(Files(tmp_path, USUAL, unlabeled={"uri": f"file://{unlabeled}"}).run)
    assert found.rows.unlabeled is not None
    assert [(row.words, row.tags) for row in found.rows.unlabeled.rows] == [(("one", "two"), None)]


def test_replay_and_retention_have_known_tags(tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [row("the Nile/B-RIVER")])
    files = Files(tmp_path, USUAL, replay={"source": {"uri": f"file://{other}"}})
    assert f"file://{other} line 1: tags that the training data never shows: 'B-RIVER' (1 words)" in files.refused()
    usual = Files(tmp_path, USUAL)
    evaluation = EvaluationSpec.model_validate({"retention": {"data": {"uri": f"file://{other}"}}})
    usual.run = usual.run.model_copy(update={"spec": usual.run.spec.model_copy(update={"evaluation": evaluation})})
    assert f"file://{other} line 1: tags that the training data never shows" in usual.refused()


def test_majority(tmp_path: Path) -> None:
    found = load(Files(tmp_path, USUAL, [row("a/B-PER b/I-PER c"), row("d e")]).run)
    assert found.majority() == {"accuracy": 0.6, "entityF1": 0.0}
    # Where most words are in entities, to call all of them one is not worth nothing.
    rows = [row("a/X b/X"), row("c/X d/Y"), row("e/X")]
    found = load(Files(tmp_path, rows, [row("f/X g/X"), row("h/X i/Y")]).run)
    assert found.majority() == {"accuracy": 0.75, "entityF1": pytest.approx(2 * 1 / (2 + 3))}


def test_the_same_rows_every_time(tmp_path: Path) -> None:
    run = Files(tmp_path, [row(f"w{n}/B-X y") for n in range(30)], None).run
    assert load(run) == load(run)
    assert json.dumps(load(run).tags) == '["O", "B-X"]'
