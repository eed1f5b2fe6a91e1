"""Alpaca's rows: read in every format, put as a chat to a model that knows chats, and as Alpaca's prompt to others."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.data.generation_rows import Chat, Instruction
from finetune_trainer.data.text_generation import load
from trainer.data_fixtures import failure, write_jsonl
from trainer.runs import complete, notes
from trainer.test_data_text_generation import generation, learnt, refused, rows_of
from trainer.tiny import FULL, NEUTRAL
from trainer.tiny_lm import CHATML, LLAMA2, make_lm, make_lm_run, make_tokenizer

ROW = {"instruction": "Translate.", "input": "the film", "output": "der Film"}
PARTS = ("Translate.", "the film", "der Film")


def instructions(count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"the {NEUTRAL[n]}", "input": "it is" if n % 2 else "", "output": NEUTRAL[-n - 1]}
        for n in range(count)
    ]


class TestRead:
    @pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
    def test_in_every_format(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"train.{ending}"
        if ending == "csv":
            path.write_text("instruction,input,output\nTranslate.,the film,der Film\nGreet.,,Hello.\n")
        else:
            rows = [ROW, {"instruction": "Greet.", "input": None, "output": "Hello."}]
            if ending == "jsonl":
                write_jsonl(path, rows)
            else:
                pq.write_table(pa.Table.from_pylist(rows), path)
        places = ("row 1", "row 2") if ending == "parquet" else ("line 2", "line 3") if ending == "csv" else None
        first, second = places or ("line 1", "line 2")
        assert load(generation(path)).train.rows == [
            Instruction(*PARTS, first), Instruction("Greet.", "", "Hello.", second)
        ]  # fmt: skip

    def test_an_input_of_missing_numbers_is_none(self, tmp_path: Path) -> None:
        """As a table without any input has them."""
        table = pa.table({"instruction": ["Greet."], "input": [float("nan")], "output": ["Hello."]})
        pq.write_table(table, tmp_path / "train.parquet")
        [row] = load(generation(tmp_path / "train.parquet")).train.rows
        assert row == Instruction("Greet.", "", "Hello.", "row 1")

    def test_columns_of_other_names(self, tmp_path: Path) -> None:
        row = {"question": "Translate.", "context": "the film", "response": "der Film", "before": "Be brief."}
        columns = {"instruction": "question", "input": "context", "output": "response", "system": "before"}
        assert rows_of(tmp_path, [row], columns=columns) == [Instruction(*PARTS, "line 1", "Be brief.")]
        assert "no column 'about'" in refused(tmp_path, [row], columns=columns | {"input": "about"})
        row = {"instruction": "a", "response": "b"}
        assert "no column 'output'; it has 'instruction', 'response'" in refused(tmp_path, [row])

    @pytest.mark.parametrize(
        ("columns", "expected"),
        [
            ({"instruction": "input"}, ("the film", "", "der Film", "Be brief.")),
            ({"instruction": "output", "output": "input"}, ("der Film", "", "the film", "Be brief.")),
            ({"instruction": "system"}, ("Be brief.", "the film", "der Film", "")),
            (
                {"instruction": "instruction", "input": "history"},
                ("Translate.", "It is 1927.", "der Film", "Be brief."),
            ),
        ],
    )
    def test_a_column_is_read_for_what_it_is_named_for(
        self, tmp_path: Path, columns: dict[str, str], expected: tuple[str, str, str, str]
    ) -> None:
        """Not for what it is called, too: the question would stand twice, or the answer in the prompt."""
        row = {**ROW, "system": "Be brief.", "history": "It is 1927." if "input" in columns else None}
        instruction, about, output, system = expected
        found = rows_of(tmp_path, [row], columns=columns)
        assert found == [Instruction(instruction, about, output, "line 1", system)]

    def test_a_column_that_is_named_with_its_space_is_read_once(self, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text("input, output\nGreet.,Hello.\n", encoding="utf-8")
        run = generation(tmp_path / "train.csv", columns={"instruction": "input ", "output": " output"})
        assert load(run).train.rows == [Instruction("Greet.", "", "Hello.", "line 2")]

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"instruction": "output"}, "'output' would be read as instruction and as output"),
            ({"output": "instruction", "input": "input"}, "'instruction' would be read as instruction and as output"),
            ({"prompt": "completion"}, "'completion' would be read as prompt and as completion"),
        ],
    )
    def test_the_answer_is_not_asked_for_by_itself(self, tmp_path: Path, columns: dict[str, str], words: str) -> None:
        run = generation(write_jsonl(tmp_path / "a.jsonl", [{**ROW, "completion": "a"}]), columns=columns)
        assert f"spec.data.columns: {words}" in failure(ExitCode.SPEC_INVALID, load, run)

    @pytest.mark.parametrize("none", ["", "[]", " [] ", "null"])
    def test_a_history_of_nothing_is_none(self, tmp_path: Path, none: str) -> None:
        (tmp_path / "train.csv").write_text(f"instruction,output,history\nGreet.,Hello.,{none}\n", encoding="utf-8")
        assert load(generation(tmp_path / "train.csv")).train.rows == [Instruction("Greet.", "", "Hello.", "line 2")]

    def test_system_belongs_to_no_text(self, tmp_path: Path) -> None:
        run = generation(write_jsonl(tmp_path / "a.jsonl", [{"a": "b"}]), columns={"text": "a", "system": "b"})
        message = failure(ExitCode.SPEC_INVALID, load, run)
        assert "names a column for system, which rows of text do not have" in message

    @pytest.mark.parametrize(
        ("form", "row"), [("text", {"text": "a"}), ("prompt and completion", {"prompt": "a", "completion": "b"})]
    )
    def test_system_has_no_effect_on_rows_without_it(self, tmp_path: Path, form: str, row: dict[str, str]) -> None:
        columns = {"system": "before"}
        row, fit = {**row, "before": "Be brief."}, {**ROW, "before": "Be brief."}
        path = write_jsonl(tmp_path / "a.jsonl", [row, fit])
        message = failure(ExitCode.SPEC_INVALID, load, generation(path, columns=columns))
        assert (
            f"spec.data.columns: names a column for system, which rows of {form} (file://{path} line 1) do" in message
        )
        mixed = write_jsonl(tmp_path / "mixed.jsonl", [fit, row])
        report = str(load(generation(mixed, columns=columns)).train.report)
        assert f"2 rows kept of 2 read; 1 of {form}, which have no column for system (line 2)" in report
        # Rows of other sources may be of another form from the first one on.
        replay = {"source": {"uri": f"file://{write_jsonl(tmp_path / 'replay.jsonl', [row])}"}}
        found = load(generation(mixed, columns=columns, replay=replay)).replay
        assert found is not None
        assert f"1 of {form}, which have no column for system (line 1)" in str(found.report)

    @pytest.mark.parametrize("beside", ["instruction", "output", "input"])
    def test_of_half_a_form_the_whole_one_beside_it_is_read(self, tmp_path: Path, beside: str) -> None:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        for row in ({"messages": messages}, {"prompt": "a", "completion": "b"}, {"text": "a"}):
            [alone], [found] = (rows_of(tmp_path, [one]) for one in (row, {**row, beside: "c"}))
            assert found == alone
        assert rows_of(tmp_path, [{**ROW, "prompt": "a"}]) == [Instruction(*PARTS, "line 1")]

    def test_the_hint_names_a_form_that_the_row_has(self, tmp_path: Path) -> None:
        row = {"text": "a", "messages": [], "instruction": "b", "prompt": "c"}
        message = refused(tmp_path, [row])
        assert "has text and messages, and it is not said which to learn" in message
        assert "columns: {messages: messages}" in message
        assert "no column 'completion'" in refused(tmp_path, [{"prompt": "a", "instruction": "b"}])

    def test_beside_a_text_it_has_to_be_said_which(self, tmp_path: Path) -> None:
        """As in Stanford's own file, whose text is all of it."""
        row = {**ROW, "text": "all of it"}
        message = refused(tmp_path, [row])
        assert "has text and instruction and output" in message
        assert "columns: {instruction: instruction}" in message
        assert rows_of(tmp_path, [row], columns={"instruction": "instruction"}) == [Instruction(*PARTS, "line 1")]

    def test_without_labels_no_output_is_needed(self, tmp_path: Path) -> None:
        more = write_jsonl(tmp_path / "more.jsonl", [{"instruction": "Greet."}])
        found = load(generation(write_jsonl(tmp_path / "a.jsonl", [ROW]), unlabeled={"uri": f"file://{more}"}))
        assert found.unlabeled is not None
        assert found.unlabeled.rows == [Instruction("Greet.", "", None, "line 1")]

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"instruction": " ", "output": "b"}, "without instruction"),
            ({"instruction": "a", "output": ""}, "without output"),
            ({"instruction": "a", "input": "b"}, "without output"),
            ({**ROW, "input": "\ud83d"}, "with half a character"),
            ({**ROW, "history": [["a", "b"]]}, "with a history, which messages can have"),
            ({**ROW, "messages": []}, "with messages and instruction and output"),
        ],
    )
    def test_dropped_and_said_why(self, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
        path = write_jsonl(tmp_path / "train.jsonl", [{"text": "good"}, row])
        found = load(generation(path, maxDroppedFraction="0.5"))
        assert f"dropped 1: 1 {reason} (line 2)" in str(found.train.report)

    def test_another_type_names_the_column(self, tmp_path: Path) -> None:
        message = refused(tmp_path, [{**ROW, "input": 5}])
        assert (
            "the input 5 is of type int, not a string (is 'input' the right column for data.columns.input?)" in message
        )

    def test_repeats_and_leaks_by_all_that_is_said(self, tmp_path: Path) -> None:
        """Also by a chat that says the same."""
        rows = [ROW, {**ROW, "input": "the  film "}, {**ROW, "system": "Be brief."}, {**ROW, "output": "Der Film."}]
        messages = [
            {"role": "user", "content": "Translate.\n\nthe film"},
            {"role": "assistant", "content": "Der Film."},
        ]
        held = write_jsonl(tmp_path / "held.jsonl", [{"messages": messages}])
        more = write_jsonl(tmp_path / "more.jsonl", [{"instruction": "Translate.", "input": "the film"}, ROW])
        path = write_jsonl(tmp_path / "train.jsonl", rows)
        found = load(generation(path, held, deduplicate=True, unlabeled={"uri": f"file://{more}"}))
        assert [row.place for row in found.train.rows] == ["line 1", "line 3"]
        assert found.unlabeled is not None
        assert not found.unlabeled.rows


class TestPut:
    def test_as_a_chat(self) -> None:
        row = Instruction(*PARTS, "", "Be brief.")
        assert row.as_chat() == Chat(
            (
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Translate.\n\nthe film"},
                {"role": "assistant", "content": "der Film"},
            ),
            "",
        )
        assert learnt(make_tokenizer(CHATML), Instruction("the film", "", "is warm", "")) == (
            "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n[is warm<|im_end|>]\n"
        )

    def test_as_alpacas_prompt_where_there_is_no_chat_template(self) -> None:
        tokenizer = make_tokenizer(None, adds_bos=True)
        assert learnt(tokenizer, Instruction(*PARTS, "")) == (
            "<s>Below is an instruction that describes a task, paired with an input that provides further context. "
            "Write a response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\n"
            "the film\n\n### Response:\n[der Film</s>]"
        )
        assert learnt(tokenizer, Instruction("Greet.", "", "Hello.", "")) == (
            "<s>Below is an instruction that describes a task. Write a response that appropriately completes the "
            "request.\n\n### Instruction:\nGreet.\n\n### Response:\n[Hello.</s>]"
        )
        assert learnt(tokenizer, Instruction("Greet.", "", "Hello.", "", "Be brief.")) == (
            "<s>Be brief.\n\n### Instruction:\nGreet.\n\n### Response:\n[Hello.</s>]"
        )


@pytest.mark.usefixtures("unchecked_export")
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LLAMA2, "chat template: sha256"),
        (None, "the tokenizer has no chat template: instructions are put as in Alpaca's"),
    ],
    ids=["chat", "prompt"],
)
@pytest.mark.parametrize("strategy", ["full", "distillation"])
def test_a_run(tmp_path: Path, template: str | None, said: str, strategy: str) -> None:
    """On training, evaluation, retention, replayed and, to be distilled, unlabelled rows alike."""
    base = make_lm(tmp_path / "base", tokenizer=make_tokenizer(template), max_position_embeddings=256)
    teacher = {"distillation": {"teacher": {"uri": f"file://{base}"}, "response": {}}}
    rows = instructions(16)
    for name, part in (("kept", rows[:4]), ("earlier", rows[4:8]), ("more", rows[8:10])):
        write_jsonl(tmp_path / f"{name}.jsonl", part)
    data: dict[str, Any] = {"replay": {"source": {"uri": "file://earlier.jsonl"}}, "maxLength": 256}
    data |= {"unlabeled": {"uri": "file://more.jsonl"}} if strategy == "distillation" else {}
    run = make_lm_run(
        tmp_path, base, FULL if strategy == "full" else teacher, rows[10:],
        evaluation={"retention": {"data": {"uri": "file://kept.jsonl"}}}, data=data, training={"maxSteps": 2},
    )  # fmt: skip
    complete(run)
    assert any(note.startswith(said) for note in notes(run))
