"""ShareGPT's conversations: their turns are messages, and what makes one of them unusable is told by row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_trainer.data.generation_rows import Chat
from finetune_trainer.data.text_generation import load
from trainer.data_fixtures import write_jsonl
from trainer.test_data_text_generation import generation, learnt, refused, rows_of
from trainer.tiny_lm import CHATML, make_tokenizer

ASKED, TOLD = {"from": "human", "value": "the film"}, {"from": "gpt", "value": "is warm"}
QUESTION, ANSWER = {"role": "user", "content": "the film"}, {"role": "assistant", "content": "is warm"}
SYSTEM = {"role": "system", "content": "be kind"}
TELL = {"type": "function", "function": {"name": "tell"}}


def row(*turns: Any, **columns: Any) -> dict[str, Any]:
    return {"conversations": list(turns), **columns}


class TestRead:
    def test_turns_are_messages(self, tmp_path: Path) -> None:
        names = ("system", "human", "gpt", "user", "assistant", "tool", "chatgpt", "observation")
        [found] = rows_of(tmp_path, [row(*({"from": name, "value": name} for name in names))])
        assert [(one["role"], one["content"]) for one in found.messages] == [
            ("system", "system"), ("user", "human"), ("assistant", "gpt"), ("user", "user"),
            ("assistant", "assistant"), ("tool", "tool"), ("assistant", "chatgpt"), ("tool", "observation"),
        ]  # fmt: skip

    def test_what_is_learnt(self, tmp_path: Path) -> None:
        [found] = rows_of(tmp_path, [row(ASKED, TOLD)])
        assert found == Chat((QUESTION, ANSWER), "line 1")
        assert learnt(make_tokenizer(CHATML), found) == (
            "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n[is warm<|im_end|>]\n"
        )

    @pytest.mark.parametrize("column", ["conversations", "messages"])
    @pytest.mark.parametrize("chat", [[ASKED, TOLD], [QUESTION, ANSWER], [ASKED, ANSWER]])
    def test_in_either_column_by_either_names(self, tmp_path: Path, column: str, chat: list[Any]) -> None:
        expected = [Chat((QUESTION, ANSWER), "line 1")]
        assert rows_of(tmp_path, [{column: chat}]) == expected
        assert rows_of(tmp_path, [{"talk": chat, column: None}], columns={"messages": "talk"}) == expected

    def test_in_parquet_and_as_json_in_csv(self, tmp_path: Path) -> None:
        turns = [{**ASKED, "weight": None}, {**TOLD, "weight": 1.0}]
        pq.write_table(pa.Table.from_pylist([row(*turns)]), tmp_path / "train.parquet")
        assert load(generation(tmp_path / "train.parquet")).train.rows == [Chat((QUESTION, ANSWER), "row 1")]
        text = json.dumps([ASKED, TOLD]).replace('"', '""')
        (tmp_path / "train.csv").write_text(f'conversations\n"{text}"\n', encoding="utf-8")
        assert load(generation(tmp_path / "train.csv")).train.rows == [Chat((QUESTION, ANSWER), "line 2")]

    def test_beside_other_forms_in_a_file(self, tmp_path: Path) -> None:
        rows = [row(ASKED, TOLD), {"messages": [QUESTION, ANSWER]}, {"instruction": "the film", "output": "is warm"}]
        path = write_jsonl(tmp_path / "train.jsonl", rows)
        held = write_jsonl(tmp_path / "held.jsonl", [{"text": "a"}])
        assert len(load(generation(path)).train.rows) == 3
        # They say the same.
        found = load(generation(path, held, deduplicate=True))
        assert [one.place for one in found.train.rows] == ["line 1"]
        assert "2 repeated (line 2, line 3)" in str(found.train.report)

    def test_what_the_column_system_says_comes_first(self, tmp_path: Path) -> None:
        rows = [
            row(ASKED, TOLD, system="be kind"),
            row({"from": "system", "value": "be kind"}, ASKED, TOLD, system=" "),
        ]
        assert [one.messages for one in rows_of(tmp_path, rows)] == [(SYSTEM, QUESTION, ANSWER)] * 2
        own = row({"from": "system", "value": "be kind"}, ASKED, TOLD, system="be brief")
        report = load(generation(write_jsonl(tmp_path / "own.jsonl", [own]))).train
        assert report.rows[0].messages == (SYSTEM, QUESTION, ANSWER)
        assert "1 with another system message than in the column beside it, which is left out (line 1)" in str(
            report.report
        )

    def test_a_column_that_is_named_for_something_else_is_no_system(self, tmp_path: Path) -> None:
        rows = [{"system": [ASKED, TOLD]}, {"conversations": [ASKED, TOLD], "system": [TELL]}]
        assert rows_of(tmp_path, rows[:1], columns={"messages": "system"}) == [Chat((QUESTION, ANSWER), "line 1")]
        assert rows_of(tmp_path, rows[1:], columns={"tools": "system"})[0].messages == (QUESTION, ANSWER)

    @pytest.mark.parametrize("empty", [{"value": ""}, {"value": " \n"}, {"value": None}, {}])
    def test_turns_that_say_nothing_and_are_not_answered_are_left_out(
        self, tmp_path: Path, empty: dict[str, Any]
    ) -> None:
        system, human = ({"from": name, **empty} for name in ("system", "human"))
        expected = (QUESTION, ANSWER)
        rows = [row(system, ASKED, TOLD), row(ASKED, TOLD, human), row(system, ASKED, TOLD, human)]
        assert [one.messages for one in rows_of(tmp_path, rows)] == [expected] * 3
        assert rows_of(tmp_path, [row(system, ASKED, TOLD, system="be kind")])[0].messages == (SYSTEM, *expected)

    def test_beside_messages_system_has_to_be_named(self, tmp_path: Path) -> None:
        chat = {"messages": [QUESTION, ANSWER], "system": "be kind"}
        assert rows_of(tmp_path, [chat])[0].messages == (QUESTION, ANSWER)
        assert rows_of(tmp_path, [chat], columns={"system": "system"})[0].messages == (SYSTEM, QUESTION, ANSWER)

    @pytest.mark.parametrize("wrap", [json.dumps, lambda call: call, lambda call: json.dumps([call])])
    def test_calls_and_tools(self, tmp_path: Path, wrap: Any) -> None:
        call = {"name": "tell", "arguments": {"city": "Oslo"}}
        turns = [ASKED, {"from": "function_call", "value": wrap(call)}, {"from": "observation", "value": "12:30"}, TOLD]
        [found] = rows_of(tmp_path, [row(*turns, tools=json.dumps([TELL]))])
        assert found.tools == (TELL,)
        assert found.messages[1:3] == (
            {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
            {"role": "tool", "content": "12:30"},
        )


class TestDropped:
    @pytest.mark.parametrize(
        ("turns", "reason"),
        [
            ([], "without messages (line 2)"),
            ([ASKED], "without an assistant's message (line 2)"),
            ([ASKED, {"from": "gpt", "value": " "}], "with an empty value (line 2: from gpt)"),
            ([{"from": "human", "value": None}, TOLD], "with an empty value (line 2: from human)"),
            ([{"from": "human"}, TOLD], "with an empty value (line 2: from human)"),
            ([ASKED, TOLD, {"from": "human"}, TOLD], "with an empty value (line 2: from human)"),
            ([ASKED, TOLD, {"from": "human"}, {"from": "human"}], "with an empty value (line 2: from human)"),
            ([{"from": "system", "value": ""}, TOLD], "with an answer before any question (line 2)"),
            ([{"from": "human", "value": ""}], "without messages (line 2)"),
            ([TOLD, ASKED, TOLD], "with an answer before any question (line 2)"),
            ([{"from": "system", "value": "a"}, TOLD], "with an answer before any question (line 2)"),
            ([ASKED, {"from": "gpt", "value": "\ud83d"}], "with half a character (line 2)"),
        ],
    )
    def test_and_said_why(self, tmp_path: Path, turns: list[Any], reason: str) -> None:
        path = write_jsonl(tmp_path / "train.jsonl", [row(ASKED, TOLD), row(*turns)])
        found = load(generation(path, maxDroppedFraction="0.5"))
        assert [one.place for one in found.train.rows] == ["line 1"]
        assert f"dropped 1: 1 {reason}" in str(found.train.report)

    @pytest.mark.parametrize("sender", ["narrator", "GPT", None, 7])
    def test_an_unknown_sender_is_shown_and_the_known_are_listed(self, tmp_path: Path, sender: Any) -> None:
        others = [row(ASKED, {"from": f"nobody {number}", "value": "a"}) for number in range(30)]
        path = write_jsonl(tmp_path / "train.jsonl", [row(ASKED, TOLD), row({**ASKED, "from": sender}, TOLD), *others])
        report = str(load(generation(path, maxDroppedFraction="0.99")).train.report)
        assert (
            "dropped 31: 31 with a from that is none of human, user, gpt, chatgpt, assistant, system, tool, "
            f"observation, function_call (line 2: {sender!r}, line 3: 'nobody 0', "
        ) in report
        assert len(report) < 400

    @pytest.mark.parametrize("value", ["tell", '{"name": "tell"}', "[]", "[1]", 7, '{"name": 1, "arguments": {}}'])
    def test_a_call_that_is_none(self, tmp_path: Path, value: Any) -> None:
        path = write_jsonl(
            tmp_path / "a.jsonl", [row(ASKED, TOLD), row(ASKED, {"from": "function_call", "value": value})]
        )
        report = str(load(generation(path, maxDroppedFraction="0.5")).train.report)
        assert "1 with a function_call that is not the JSON of {name, arguments} (line 2: " in report

    def test_a_greeting_among_messages_is_for_the_template_to_judge(self, tmp_path: Path) -> None:
        assert len(rows_of(tmp_path, [{"conversations": [ANSWER, QUESTION, ANSWER]}])) == 1


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ("hello", "the messages 'hello' is of type str, not a list of {role, content}, or the JSON of one"),
        ([ASKED, "hello"], "line 1: message 2: 'hello' has no role"),
        ([{"speaker": "a"}], "message 1: {'speaker': 'a'} has no role"),
        ([{"from": "human", "value": 5}], "message 1 ('user') has content of type int, not a string"),
    ],
)
def test_what_is_no_conversation_names_the_turn(tmp_path: Path, turns: Any, words: str) -> None:
    assert words in refused(tmp_path, [{"conversations": turns}])


def test_rows_without_labels_need_no_answer(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [row(ASKED, TOLD)])
    more = write_jsonl(tmp_path / "more.jsonl", [row({"from": "human", "value": "and it"}), row(ASKED)])
    found = load(generation(train, unlabeled={"uri": f"file://{more}"}))
    assert found.unlabeled is not None
    assert [one.messages for one in found.unlabeled.rows] == [({"role": "user", "content": "and it"},), (QUESTION,)]
