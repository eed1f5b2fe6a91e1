"""From rows to questions: each answer looked up where it is said to be, each drop reported."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.data.question_answering import Question, load
from trainer.data_fixtures import failure, run_on, write_jsonl

TASK = "QuestionAnswering"


def row(question: str, context: str, *answers: str, starts: list[int] | None = None) -> dict[str, Any]:
    places = starts if starts is not None else [context.index(answer) for answer in answers]
    return {"question": question, "context": context, "answers": {"text": list(answers), "answer_start": places}}


USUAL = [
    row("Who sings?", "Ada sings in Oslo.", "Ada"),
    row("Where?", "Ada sings in Oslo.", "Oslo", "in Oslo"),
    row("When?", "Ada sings in Oslo."),
]
HELD = [row("Who reads?", "Ole reads.", "Ole")]


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

    def last(self) -> Question:
        return load(self.run).rows.train.rows[-1]


def test_usual_rows(tmp_path: Path) -> None:
    found = load(Files(tmp_path, USUAL).run)
    assert [(row.question, row.answers) for row in found.rows.train.rows] == [
        ("Who sings?", (("Ada", 0),)),
        ("Where?", (("Oslo", 13), ("in Oslo", 10))),
        ("When?", ()),
    ]
    assert found.may_be_unanswerable
    assert found.share_unanswerable() == 0.0
    assert not load(Files(tmp_path, USUAL[:2]).run).may_be_unanswerable
    assert load(Files(tmp_path, USUAL, [*HELD, row("When?", "Ole reads.")]).run).share_unanswerable() == 0.5


def test_other_forms_give_the_same(tmp_path: Path) -> None:
    expected = load(Files(tmp_path, USUAL).run).rows.train.rows
    pq.write_table(pa.Table.from_pylist(USUAL), tmp_path / "train.parquet")
    listed = [
        {**row, "answers": [dict(zip(("text", "answer_start"), pair, strict=True)) for pair in pairs]}
        for row in USUAL
        for pairs in [list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))]
    ]
    write_jsonl(tmp_path / "listed.jsonl", listed)
    for name in ("train.parquet", "listed.jsonl"):
        found = load(run_on(tmp_path / name, tmp_path / "eval.jsonl", task=TASK)).rows.train.rows
        assert [(row.question, row.context, row.answers) for row in found] == [
            (row.question, row.context, row.answers) for row in expected
        ]


class TestPlaces:
    def test_elsewhere_once_is_mended(self, tmp_path: Path) -> None:
        # As a program that counts UTF-16 units, or bytes, would have it.
        files = Files(tmp_path, [*USUAL, row("Where?", "\U0001f600\U0001f600 in Oslo", "Oslo", starts=[8])])
        assert files.last().answers == (("Oslo", 6),)
        assert files.report().endswith("4 rows kept of 4 read; 1 with a wrong answer_start, mended (line 4)")

    @pytest.mark.parametrize("start", [-1, 1, 99])
    def test_elsewhere_twice_is_dropped(self, tmp_path: Path, start: int) -> None:
        rows = [*USUAL, row("Who?", "Ada and Ada", "Ada", starts=[start])]
        files = Files(tmp_path, rows, maxDroppedFraction="0.5")
        said = "3 rows kept of 4 read; dropped 1: 1 with an answer that is not in the context (line 4)"
        assert files.report().endswith(said)
        assert "(line 4); 25.0% of the rows are unusable" in Files(tmp_path, rows).refused()

    def test_twice_but_where_it_says_is_right(self, tmp_path: Path) -> None:
        rows = [*USUAL, row("Who?", "Ada and Ada", "Ada", starts=[8])]
        assert Files(tmp_path, rows).last().answers == (("Ada", 8),)

    def test_nowhere(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [*USUAL, row("Who?", "Ada sings", "ada", starts=[0])], maxDroppedFraction="0.5")
        assert "1 with an answer that is not in the context (line 4)" in files.report()

    def test_one_of_several(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [*USUAL, row("Who?", "Ada sings", "Bob", "Ada", starts=[0, 0])])
        assert files.last().answers == (("Ada", 0),)
        assert "1 with one of several answers left out, because it is not in the context (line 4)" in files.report()

    def test_spaces_around_an_answer_are_not_a_part_of_it(self, tmp_path: Path) -> None:
        files = Files(tmp_path, [*USUAL, row("Who?", "so Ada sings", " Ada ", starts=[2])])
        assert files.last().answers == (("Ada", 3),)

    def test_an_answer_at_the_end(self, tmp_path: Path) -> None:
        assert Files(tmp_path, [*USUAL, row("W?", "é ü 東京", "東京", starts=[4])]).last().answers == (("東京", 4),)


class TestDroppedRows:
    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (row(" ", "a"), "with empty question"),
            (row("q", "\n"), "with empty context"),
            ({"question": None, "context": "c", "answers": None}, "with empty question"),
            ({"question": "q", "context": "c", "answers": None}, "without answers"),
            ({"question": "q", "context": "c"}, "without answers"),
            (row("q", "cut \ud83d"), "with half a character"),
        ],
    )
    def test_are_told_with_their_place(self, tmp_path: Path, bad: dict[str, Any], said: str) -> None:
        files = Files(tmp_path, [*USUAL, bad], maxDroppedFraction="0.5")
        assert files.report().endswith(f"3 rows kept of 4 read; dropped 1: 1 {said} (line 4)")

    def test_repeats_are_of_question_and_context(self, tmp_path: Path) -> None:
        rows = [*USUAL, row("who sings", "ada SINGS in oslo"), row("Who reads", "Ole reads")]
        said = "dropped 2: 1 repeated (line 4), 1 also in the evaluation data (line 5)"
        assert Files(tmp_path, rows).report().endswith(said)

    @pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}, {"text": [""], "answer_start": [-1]}])
    def test_empty_is_unanswerable(self, tmp_path: Path, answers: Any) -> None:
        files = Files(tmp_path, [*USUAL[:2], {"question": "q", "context": "c", "answers": answers}])
        assert files.last().answers == ()

    @pytest.mark.parametrize(
        "answers",
        [
            "Ada",
            5,
            ["Ada"],
            {"text": ["Ada"]},
            {"text": "Ada", "answer_start": 0},
            {"text": ["Ada"], "answer_start": []},
            {"text": ["Ada"], "answer_start": ["0"]},
            {"text": ["Ada"], "answer_start": [True]},
            {"text": [5], "answer_start": [0]},
            [{"text": "Ada"}],
        ],
    )
    def test_other_forms_are_refused(self, tmp_path: Path, answers: Any) -> None:
        files = Files(tmp_path, [*USUAL, {"question": "q", "context": "Ada", "answers": answers}])
        sentence = files.refused()
        assert sentence.startswith(f"file://{files.train} line 4: the answers ")
        assert sentence.endswith(
            "not SQuAD's {text: [strings], answer_start: [integers]}, both of one length "
            "(is 'answers' the right column for data.columns.answers?)"
        )

    def test_none_has_an_answer(self, tmp_path: Path) -> None:
        assert "none of the training rows has an answer (set data.columns" in Files(tmp_path, USUAL[2:]).refused()


def test_unlabeled_rows_need_no_answers(tmp_path: Path) -> None:
    unlabeled = write_jsonl(tmp_path / "more.jsonl", [{"question": "q", "context": "c"}, HELD[0], USUAL[0]])
    found = load(Files(tmp_path, USUAL, unlabeled={"uri": f"file://{unlabeled}"}).run)
    assert found.rows.unlabeled is not None
    assert [(row.question, row.answers) for row in found.rows.unlabeled.rows] == [("q", None)]


class TestHoldingOut:
    ROWS = tuple(row(f"Who {n}?", f"Ada {n // 5} sings", "Ada") for n in range(100))

    def test_whole_contexts(self, tmp_path: Path) -> None:
        found = load(Files(tmp_path, list(self.ROWS), None).run)
        train, held = found.rows.train.rows, found.rows.evaluation.rows
        assert len(held) == 10
        assert len(train) + len(held) == 100
        assert not {row.context for row in train} & {row.context for row in held}
        assert str(found.rows.train.report).endswith("100 rows kept of 100 read, 10 of them held out for evaluation")

    def test_of_one_context_some_questions(self, tmp_path: Path) -> None:
        rows = [row(f"Who {n}?", "Ada sings", "Ada") for n in range(20)]
        found = load(Files(tmp_path, rows, None).run)
        assert (len(found.rows.train.rows), len(found.rows.evaluation.rows)) == (18, 2)

    def test_retention_rows_come_back_to_no_side(self, tmp_path: Path) -> None:
        """Contexts are put together from rows that were held out at first."""
        earlier = write_jsonl(tmp_path / "earlier.jsonl", list(self.ROWS[::3]))
        rows = load(Files(tmp_path, list(self.ROWS), None, retention=earlier).run).rows
        assert rows.retention is not None
        retained = {row.key() for row in rows.retention.rows}
        assert len(retained) == 34
        assert len(rows.train.rows) + len(rows.evaluation.rows) == 66
        assert not retained & {row.key() for part in (rows.train, rows.evaluation) for row in part.rows}

    def test_replayed_rows_are_not_judged(self, tmp_path: Path) -> None:
        again = write_jsonl(tmp_path / "again.jsonl", list(self.ROWS))
        files = Files(tmp_path, list(self.ROWS), None, replay={"source": {"uri": f"file://{again}"}, "fraction": "0.5"})
        rows = load(files.run).rows
        assert rows.replay is not None
        assert rows.replay.rows
        assert not {row.key() for row in rows.replay.rows} & {row.key() for row in rows.evaluation.rows}
        assert rows.replay.report.num_kept == len(rows.replay.rows)
