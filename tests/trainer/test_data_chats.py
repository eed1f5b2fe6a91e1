"""What a chat has besides its texts: functions that may be called, calls of them, and a template that asks the date."""

import json
import time
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_trainer.data.generation_rows import Chat
from finetune_trainer.data.learnt_tokens import Encoder
from finetune_trainer.data.text_generation import load
from finetune_trainer.first_start import first_start
from finetune_trainer.tasks.text_generation import TextGeneration
from trainer import processes
from trainer.data_fixtures import failure, write_jsonl
from trainer.processes import run_trainer
from trainer.ranks import on_nodes, run_ranks
from trainer.runs import notes
from trainer.test_data_text_generation import generation, refused, rows_of
from trainer.tiny import FULL, make_run
from trainer.tiny_lm import CHATML, MARKED, make_chats, make_lm, make_lm_run, make_tokenizer

CALLING = (
    "{% if tools %}{{ 'tools ' + (tools|tojson) + '\\n' }}{% endif %}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{% for call in message.tool_calls or [] %}{{ '<call>' + (call.function|tojson) }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TELL, LOOK = ({"type": "function", "function": {"name": name}} for name in ("tell", "look"))
QUESTION = {"role": "user", "content": "the hour"}
MOMENT = datetime(2024, 7, 26, 13, 5)


def call(**arguments: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def chat(*tools: dict[str, Any], answer: dict[str, Any] | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"messages": [QUESTION, answer or {"role": "assistant", "content": "late"}]}
    return row | ({"tools": list(tools)} if tools else {})


def written(row: Chat, template: str = CALLING, moment: datetime | None = None) -> str:
    tokenizer = make_tokenizer(template)
    text: str = tokenizer.decode(Encoder(tokenizer, moment).encode(row, "").ids)
    return text


class TestTools:
    @pytest.mark.parametrize("given", [[TELL], json.dumps([TELL])], ids=["list", "json"])
    def test_are_given_to_the_template(self, tmp_path: Path, given: Any) -> None:
        [row] = rows_of(tmp_path, [{"messages": chat()["messages"], "tools": given}])
        assert row.tools == (TELL,)
        assert written(row).startswith(f"tools {json.dumps([TELL])}\n<|im_start|>user\nthe hour")

    def test_in_a_column_of_another_name(self, tmp_path: Path) -> None:
        row = {"messages": chat()["messages"], "functions": [TELL]}
        assert rows_of(tmp_path, [row], columns={"tools": "functions"})[0].tools == (TELL,)
        assert rows_of(tmp_path, [row])[0].tools is None
        assert "no column 'functions'" in refused(tmp_path, [chat()], columns={"tools": "functions"})

    @pytest.mark.parametrize("column", ["messages", "conversations"])
    @pytest.mark.parametrize("columns", [{"tools": "functions"}, {"system": "before"}], ids=["tools", "system"])
    def test_named_alone_leave_the_column_of_the_chat_to_the_row(
        self, tmp_path: Path, column: str, columns: dict[str, str]
    ) -> None:
        messages = chat()["messages"]
        row = {column: messages, "functions": [TELL], "before": "be kind"}
        [found] = rows_of(tmp_path, [row], columns=columns)
        system = {"role": "system", "content": "be kind"}
        assert found.messages == ((system, *messages) if "system" in columns else tuple(messages))
        assert found.tools == ((TELL,) if "tools" in columns else None)
        # They belong to a chat.
        assert rows_of(tmp_path, [{**row, "text": "a"}], columns=columns) == [found]
        both = {"messages": messages, "conversations": messages, **row}
        assert "has messages and conversations" in refused(tmp_path, [both], columns=columns)

    def test_are_not_read_of_a_column_that_is_named_for_something_else(self, tmp_path: Path) -> None:
        row = {"tools": chat()["messages"]}
        assert rows_of(tmp_path, [row], columns={"messages": "tools"})[0].tools is None
        row = {"messages": chat()["messages"], "tools": "be kind"}
        assert rows_of(tmp_path, [row], columns={"system": "tools"})[0].messages[0]["content"] == "be kind"

    @pytest.mark.parametrize("none", [None, [], "", "[]"])
    def test_may_be_none(self, tmp_path: Path, none: Any) -> None:
        assert rows_of(tmp_path, [{**chat(), "tools": none}])[0].tools is None

    @pytest.mark.parametrize("wrong", ["tell", ["tell"], {"name": "tell"}, "[1]", 7])
    def test_anything_else_is_refused(self, tmp_path: Path, wrong: Any) -> None:
        message = refused(tmp_path, [{**chat(), "tools": wrong}])
        assert "line 1: the tools " in message
        assert "not a list of functions' JSON schemas, or the JSON of one" in message
        assert "data.columns.tools" in message

    def test_belong_to_chats_alone(self, tmp_path: Path) -> None:
        run = generation(write_jsonl(tmp_path / "a.jsonl", [{"a": "b"}]), columns={"text": "a", "tools": "b"})
        said = failure(ExitCode.SPEC_INVALID, load, run)
        assert "names a column for tools, which rows of text do not have" in said
        assert len(rows_of(tmp_path, [{"prompt": "a", "completion": "b", "tools": "c"}])) == 1

    def test_rows_that_differ_in_them_or_in_calls_are_no_repeats(self, tmp_path: Path) -> None:
        rows = [chat(TELL), chat(LOOK), chat(), chat(answer=call(x=1)), chat(answer=call(x=2)), chat(LOOK)]
        held = write_jsonl(tmp_path / "held.jsonl", [chat(TELL, LOOK)])
        path = write_jsonl(tmp_path / "train.jsonl", rows)
        found = load(generation(path, held, deduplicate=True)).train
        assert [row.place for row in found.rows] == [f"line {number}" for number in range(1, 6)]
        assert "1 repeated (line 6)" in str(found.report)

    @pytest.mark.parametrize(
        ("template", "is_left_out"),
        [(CALLING, False), (CHATML, True), ("{{ tools[0].type }}" + CALLING, False)],
        ids=["written", "left out", "needed"],
    )
    def test_a_template_that_leaves_them_out_is_told(self, tmp_path: Path, template: str, is_left_out: bool) -> None:
        base = make_lm(tmp_path / "base", tokenizer=make_tokenizer(template))
        task = TextGeneration.read(make_lm_run(tmp_path, base, FULL, [chat(TELL), chat(LOOK)]), base)
        said = "; 2 with tools, which the chat template does not write (line 1, line 2)" in task.data_report[0]
        assert said == is_left_out

    @pytest.mark.parametrize("first", [{"role": "assistant", "content": "late"}, call(x=1)], ids=["greeting", "call"])
    def test_before_an_assistant_that_begins_they_are_given(self, first: dict[str, Any]) -> None:
        tokenizer = make_tokenizer(CALLING)
        tokens = Encoder(tokenizer).encode(Chat((first, QUESTION), "", (TELL,)), "")
        given = tokenizer.decode([token for token, one in zip(tokens.ids, tokens.learnt, strict=True) if not one])
        assert given.startswith(f"tools {json.dumps([TELL])}\n<|im_start|>assistant\n\n<|im_start|>user\nthe hour")
        says = "late" if "content" in first else '<call>{"name": "f", "arguments": {"x": 1}}'
        answer = [token for token, one in zip(tokens.ids, tokens.learnt, strict=True) if one]
        assert tokenizer.decode(answer) == f"{says}<|im_end|>"

    def test_several_templates(self) -> None:
        """One by the name of tool_use writes what has tools, as transformers wants it; its markers count there."""
        tokenizer = make_tokenizer(CHATML)
        tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ 'with ' }}" + MARKED}
        [with_tools, without] = (
            Encoder(tokenizer).encode(Chat((QUESTION, {"role": "assistant", "content": "late"}), "", tools), "")
            for tools in ((TELL,), None)
        )
        assert tokenizer.decode(with_tools.ids) == "with user>the hour\nassistant>late</s>\n"
        learnt = [token for token, one in zip(with_tools.ids, with_tools.learnt, strict=True) if one]
        assert tokenizer.decode(learnt) == "late</s>"
        assert tokenizer.decode(without.ids).startswith("<|im_start|>user")


def test_arrow_and_json_lines_give_the_same(tmp_path: Path) -> None:
    """Arrow gives each struct the fields of all others, null where there are none: in calls and in tools too."""
    calls = [call(city="here"), call(sum="1", deep=[{"a": 1}, {"b": "x"}])]
    rows = [chat(TELL, answer=calls[0]), chat({**LOOK, "strict": True}, answer=calls[1])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    from_parquet = load(generation(tmp_path / "train.parquet")).train.rows
    from_jsonl = rows_of(tmp_path, rows)
    assert [written(row) for row in from_parquet] == [written(row) for row in from_jsonl]
    assert "null" not in written(from_parquet[0])


def test_a_null_that_somebody_wrote_stays_within_a_call(tmp_path: Path) -> None:
    [row] = rows_of(tmp_path, [chat(answer={**call(city=None), "content": None})])
    assert '{"name": "f", "arguments": {"city": null}}' in written(row)


class TestContentInParts:
    def test_of_text_is_joined(self, tmp_path: Path) -> None:
        parts = [{"type": "text", "text": "the film"}, {"type": "text", "text": "is warm"}]
        [row] = rows_of(tmp_path, [{"messages": [QUESTION, {"role": "assistant", "content": parts}]}])
        assert row.messages[1]["content"] == "the film\nis warm"

    def test_of_anything_else_is_refused(self, tmp_path: Path) -> None:
        parts = [{"type": "text", "text": "what is it?"}, {"type": "image", "url": "a.png"}]
        message = refused(tmp_path, [{"messages": [{"role": "user", "content": parts}]}])
        assert "content of type list, not a string" in message
        assert "only text can be learnt" in message


class TestDate:
    DATED = "{{ 'It is ' + strftime_now('%d %b %Y') + '\\n' }}"

    @pytest.mark.parametrize("template", [CHATML, MARKED], ids=["split", "marked"])
    def test_is_that_of_the_moment_given(self, template: str) -> None:
        row = Chat((QUESTION, {"role": "assistant", "content": "late"}), "")
        assert written(row, self.DATED + template, MOMENT).startswith("It is 26 Jul 2024\n")

    def test_others_have_their_clock_back(self) -> None:
        tokenizer = make_tokenizer(self.DATED + CHATML)
        Encoder(tokenizer, MOMENT).encode(Chat((QUESTION, {"role": "assistant", "content": "late"}), ""), "")
        now = datetime.now().strftime("%d %b %Y")
        assert f"It is {now}" in tokenizer.apply_chat_template([QUESTION], tokenize=False)

    def test_is_told_where_the_template_asks_for_it(self, tmp_path: Path) -> None:
        said = []
        for name, template in (("dated", self.DATED + CHATML), ("plain", CHATML)):
            base = make_lm(tmp_path / name, tokenizer=make_tokenizer(template))
            run = make_lm_run(tmp_path, base, FULL, make_chats(8)).model_copy(update={"first_started_at": MOMENT})
            last_line = TextGeneration.read(run, base).data_report[-1]
            said.append("told that of the job's first start: 26 Jul 2024" in last_line)
        assert said == [True, False]

    def test_a_run_that_goes_on_later_goes_on_from_its_checkpoint(self, tmp_path: Path) -> None:
        """The template tells the second, and a second passes."""
        template = "{{ strftime_now('%H:%M:%S') + '\\n' }}" + CHATML
        base = make_lm(tmp_path / "base", tokenizer=make_tokenizer(template))
        run = make_lm_run(tmp_path, base, FULL, make_chats(16))
        in_step = "finetune_trainer.optim:learning_rate_factor"
        assert run_trainer(run, partial(processes.signal_before, in_step, 2)) == ExitCode.STOPPED
        time.sleep(1.1)
        assert run_trainer(run) == ExitCode.COMPLETE
        assert "resumed from the checkpoint at step 2 of 4" in notes(run)

    @pytest.mark.usefixtures("unchecked_export")
    def test_all_processes_of_a_job_are_told_the_same(self, tmp_path: Path) -> None:
        """Or those that read the data on either side of midnight, here of a microsecond, would refuse to train."""
        base = make_lm(tmp_path / "base", tokenizer=make_tokenizer("{{ strftime_now('%H:%M:%S %f') }}" + CHATML))
        run = on_nodes(make_lm_run(tmp_path, base, FULL, make_chats(16)), 2)
        assert run_ranks(run) == [ExitCode.COMPLETE] * 2


class TestFirstStart:
    def test_is_kept_for_the_same_job_and_spec(self, tmp_path: Path) -> None:
        run = make_run(tmp_path, tmp_path, FULL)
        Path(run.work_dir).mkdir()
        first = first_start(run)
        record = Path(run.work_dir, "first-start.json")
        record.write_text(record.read_text().replace(first, "2024-07-26T13:05:00"))
        assert first_start(run) == "2024-07-26T13:05:00"
        assert first_start(make_run(tmp_path, tmp_path, FULL, uid="2")) != "2024-07-26T13:05:00"

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"owner": 1, "at": "x"}', "\x00"])
    def test_what_cannot_be_read_is_written_anew(self, tmp_path: Path, content: str) -> None:
        run = make_run(tmp_path, tmp_path, FULL)
        Path(run.work_dir).mkdir()
        Path(run.work_dir, "first-start.json").write_text(content)
        assert first_start(run) == first_start(run)
