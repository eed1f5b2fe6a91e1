"""From rows to tokens of which some are learnt: the forms of rows, real chat templates, expectations by hand."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.data.chat_template import ChatTemplate, Unlearnable
from finetune_trainer.data.generation_rows import Chat, PlainText, PromptCompletion
from finetune_trainer.data.learnt_tokens import Encoder
from finetune_trainer.data.text_generation import load
from finetune_trainer.errors import TrainerError
from trainer.data_fixtures import failure, write_jsonl
from trainer.tiny_lm import CHATML, EOS, FORGETFUL, IM_END, LLAMA2, MARKED, PAD, PLAIN, make_tokenizer

QUESTION, ANSWER = {"role": "user", "content": "the film"}, {"role": "assistant", "content": "is warm"}
MORE = ({"role": "user", "content": "and it"}, {"role": "assistant", "content": "was dull"})
CHAT = [QUESTION, ANSWER]


def generation(train: Path, evaluation: Path | None = None, **data: Any) -> Run:
    sources = {"train": {"uri": f"file://{train}"}, "evaluation": {"uri": f"file://{evaluation or train}"}}
    spec = {
        "task": "TextGeneration",
        "model": {"uri": "file:///nowhere"},
        "data": {**sources, "deduplicate": False, **data},
        # The one strategy that takes rows of every kind.
        "strategy": {"distillation": {"teacher": {"uri": "file:///nowhere"}, "response": {}}},
        "output": {"uri": "file:///nowhere"},
    }
    return Run.model_validate_json(json.dumps({"name": "job", "uid": "1", "spec": spec, "workDir": "/nowhere"}))


def rows_of(tmp_path: Path, rows: list[Any], **data: Any) -> list[Any]:
    return load(generation(write_jsonl(tmp_path / "train.jsonl", rows), **data)).train.rows


def refused(tmp_path: Path, rows: list[Any], **data: Any) -> str:
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    return failure(ExitCode.DATA_INVALID, load, generation(path, **data))


class TestForms:
    def test_each_is_told_by_its_columns(self, tmp_path: Path) -> None:
        rows = [{"text": "all of it"}, {"prompt": "a", "completion": "b"}, {"messages": CHAT}]
        found = rows_of(tmp_path, rows)
        assert found == [
            PlainText("all of it", "line 1"), PromptCompletion("a", "b", "line 2"), Chat((QUESTION, ANSWER), "line 3")
        ]  # fmt: skip

    def test_named_columns_decide_between_several(self, tmp_path: Path) -> None:
        row = {"prompt": "a", "completion": "b", "text": "ab", "chat": CHAT}
        said = refused(tmp_path, [row])
        assert "has text and prompt and completion, and it is not said which to learn" in said
        assert "such as columns: {prompt: prompt}" in said
        assert rows_of(tmp_path, [row], columns={"text": "text"}) == [PlainText("ab", "line 1")]
        assert rows_of(tmp_path, [row], columns={"messages": "chat"}) == [Chat((QUESTION, ANSWER), "line 1")]
        renamed = rows_of(tmp_path, [row], columns={"prompt": "text", "completion": "completion"})
        assert renamed == [PromptCompletion("ab", "b", "line 1")]

    def test_columns_of_two_forms_are_refused(self, tmp_path: Path) -> None:
        run = generation(write_jsonl(tmp_path / "a.jsonl", [{"a": "b"}]), columns={"text": "a", "prompt": "b"})
        message = failure(ExitCode.SPEC_INVALID, load, run)
        assert "spec.data.columns: names columns of text and of prompt and completion" in message

    def test_without_any_of_them_the_columns_are_listed(self, tmp_path: Path) -> None:
        message = refused(tmp_path, [{"question": "a", "answer": "b"}])
        assert (
            "no column 'text', 'prompt' and 'completion', 'messages', 'conversations', or 'instruction' and 'output'; "
            "it has 'question', 'answer'"
        ) in message
        assert "data.columns.prompt and completion" in message

    def test_columns_of_another_source_are_to_be_renamed(self, tmp_path: Path) -> None:
        train = write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
        more = write_jsonl(tmp_path / "more.jsonl", [{"body": "c"}])
        message = failure(ExitCode.DATA_INVALID, load, generation(train, unlabeled={"uri": f"file://{more}"}))
        assert "it has 'body' (rename the columns there: all sources share data.columns, and" in message

    def test_a_missing_half_is_named(self, tmp_path: Path) -> None:
        assert "no column 'completion'; it has 'prompt', 'answer'" in refused(tmp_path, [{"prompt": "a", "answer": ""}])

    def test_parquet_structs_lose_their_empty_fields(self, tmp_path: Path) -> None:
        table = pa.Table.from_pylist([{"messages": [{**QUESTION, "name": None}, {**ANSWER, "name": "x"}]}])
        pq.write_table(table, tmp_path / "train.parquet")
        [row] = load(generation(tmp_path / "train.parquet")).train.rows
        assert row.messages == (QUESTION, {**ANSWER, "name": "x"})

    def test_a_chat_may_be_json_as_in_a_csv_file(self, tmp_path: Path) -> None:
        text = json.dumps(CHAT).replace('"', '""')
        (tmp_path / "train.csv").write_text(f'messages\n"{text}"\n', encoding="utf-8")
        assert load(generation(tmp_path / "train.csv")).train.rows == [Chat((QUESTION, ANSWER), "line 2")]

    def test_unlabeled_rows_need_no_completion_and_no_assistant(self, tmp_path: Path) -> None:
        train = write_jsonl(tmp_path / "train.jsonl", [{"prompt": "a", "completion": "b"}])
        rows = [{"prompt": "c"}, {"messages": [QUESTION]}, {"text": "d"}]
        more = write_jsonl(tmp_path / "more.jsonl", rows)
        found = load(generation(train, unlabeled={"uri": f"file://{more}"}))
        assert found.unlabeled is not None
        assert found.unlabeled.rows == [
            PromptCompletion("c", None, "line 1"), Chat((QUESTION,), "line 2"), PlainText("d", "line 3")
        ]  # fmt: skip


class TestDropped:
    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"text": " "}, "with empty text"),
            ({"other": "x"}, "with empty text"),
            ({"prompt": "", "completion": "b"}, "without prompt"),
            ({"prompt": "a", "completion": " "}, "without completion"),
            ({"prompt": "a"}, "without completion"),
            ({"messages": []}, "without messages"),
            ({"messages": [QUESTION]}, "without an assistant's message"),
            ({"text": "a", "prompt": "b", "completion": "c"}, "with text and prompt and completion"),
            ({"messages": CHAT, "conversations": CHAT}, "with messages and conversations"),
            ({"text": "\ud83d"}, "with half a character"),
            ({"messages": [QUESTION, {"role": "assistant", "content": "\ud83d"}]}, "with half a character"),
        ],
    )
    def test_and_said_why(self, tmp_path: Path, row: dict[str, Any], reason: str) -> None:
        path = write_jsonl(tmp_path / "train.jsonl", [{"text": "good"}, row])
        found = load(generation(path, maxDroppedFraction="0.5"))
        assert len(found.train.rows) == 1
        assert f"dropped 1: 1 {reason} (line 2)" in str(found.train.report)

    def test_repeats_and_leaks_by_all_that_is_said(self, tmp_path: Path) -> None:
        other = [QUESTION, {"role": "assistant", "content": "is dull"}]
        train = [{"messages": CHAT}, {"messages": other}, {"messages": [QUESTION, {**ANSWER, "content": "is\twarm "}]}]
        path = write_jsonl(tmp_path / "train.jsonl", train)
        held = write_jsonl(tmp_path / "held.jsonl", [{"messages": other}])
        found = load(generation(path, held, deduplicate=True))
        assert [row.place for row in found.train.rows] == ["line 1"]
        assert "1 repeated (line 3), 1 also in the evaluation data (line 2)" in str(found.train.report)

    @pytest.mark.parametrize(
        "texts",
        [
            ("a - b", "a * b", "a / b", "a, b", "a b"),
            ("return a", "Return a"),
            ("f(a)[b]", "f(a, b)"),
            ("2\u00b2", "22"),
        ],
    )
    def test_what_differs_in_a_character_is_no_repeat(self, tmp_path: Path, texts: tuple[str, ...]) -> None:
        """A sum or a line of code is another with another sign, and what is written is learnt to the character."""
        forms = [[{"text": text} for text in texts], [{"prompt": text, "completion": "x"} for text in texts]]
        forms.append([{"messages": [{"role": "user", "content": text}, ANSWER]} for text in texts])
        for rows in forms:
            [first, *others] = rows
            train = write_jsonl(tmp_path / "train.jsonl", others)
            held = write_jsonl(tmp_path / "held.jsonl", [first])
            found = load(generation(train, held, deduplicate=True, unlabeled={"uri": f"file://{held}"}))
            assert len(found.train.rows) == len(others)
            assert found.unlabeled is not None
            assert not found.unlabeled.rows

    def test_composed_characters_and_spaces_make_no_difference(self, tmp_path: Path) -> None:
        texts = ["caf\u00e9 au lait", "cafe\u0301  au\nlait"]
        path = write_jsonl(tmp_path / "train.jsonl", [{"text": text} for text in texts])
        held = write_jsonl(tmp_path / "held.jsonl", [{"text": "tea"}])
        assert [row.place for row in load(generation(path, held, deduplicate=True)).train.rows] == ["line 1"]


class TestUnlabeledRowsThatAreJudged:
    """They are compared by what is given: of an answer they know nothing, or another one."""

    SYSTEM, GREETING = {"role": "system", "content": "be kind"}, {"role": "assistant", "content": "hello"}

    def left(self, tmp_path: Path, judged: Any, unlabeled: list[Any]) -> list[str]:
        """Where the rows stand that are kept, of those without labels."""
        train = write_jsonl(tmp_path / "train.jsonl", [{"text": "something else"}])
        held = write_jsonl(tmp_path / "held.jsonl", [judged])
        more = write_jsonl(tmp_path / "more.jsonl", unlabeled)
        found = load(generation(train, held, deduplicate=True, unlabeled={"uri": f"file://{more}"})).unlabeled
        assert found is not None
        dropped = len(unlabeled) - len(found.rows)
        assert dropped == found.report.duplicate["also in the evaluation or retention data"]
        return [row.place for row in found.rows]

    def test_prompts(self, tmp_path: Path) -> None:
        judged = {"prompt": "How old is the moon?", "completion": " Old."}
        unlabeled = [{"prompt": " How old  is the moon?"}, {"prompt": "How old is the sun?"}]
        assert self.left(tmp_path, judged, unlabeled) == ["line 2"]

    def test_texts(self, tmp_path: Path) -> None:
        assert self.left(tmp_path, {"text": "the film"}, [{"text": "the house"}, {"text": "the film "}]) == ["line 1"]

    def test_chats(self, tmp_path: Path) -> None:
        other = {"role": "assistant", "content": "another answer"}
        unlabeled = [{"messages": part} for part in ([QUESTION], [MORE[0]], [QUESTION, other, *MORE])]
        assert self.left(tmp_path, {"messages": CHAT}, unlabeled) == ["line 2"]

    def test_a_greeting_is_no_answer(self, tmp_path: Path) -> None:
        """Or all chats that begin with it would be one."""
        start = [self.SYSTEM, self.GREETING]
        unlabeled = [{"messages": part} for part in ([*start, QUESTION], [*start, MORE[0]], [self.SYSTEM, MORE[0]])]
        assert self.left(tmp_path, {"messages": [*start, *CHAT]}, unlabeled) == ["line 2", "line 3"]

    def test_chats_without_a_question_are_compared_as_a_whole(self, tmp_path: Path) -> None:
        unlabeled = [{"messages": [self.GREETING]}, {"messages": [ANSWER]}]
        assert self.left(tmp_path, {"messages": [self.GREETING]}, unlabeled) == ["line 2"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "the messages 'hello' is of type str, not a list of {role, content}, or the JSON of one"),
        ([QUESTION, "hello"], "line 1: message 2: 'hello' has no role"),
        ([{"content": "a"}], "message 1: {'content': 'a'} has no role"),
        ([{"role": 1, "content": "a"}], "message 1: {'role': 1, 'content': 'a'} has no role"),
        ([{"role": "user"}], "message 1 ('user') has no content"),
        ([{"role": "user", "content": ["a"]}], "message 1 ('user') has content of type list, not a string"),
    ],
)
def test_malformed_messages_name_the_message(tmp_path: Path, messages: Any, words: str) -> None:
    assert words in refused(tmp_path, [{"messages": messages}])


# As SmolLM2's: a system text of its own where the chat begins without one.
SYSTEMATIC = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nbe kind<|im_end|>\\n' }}{% endif %}" + CHATML
)
# As Llama 3's.
TRIMMED = CHATML.replace("\\n' + message['content']", "\\n\\n' + message['content'] | trim").replace(
    "assistant\\n", "assistant\\n\\n"
)
# The blank before an answer is not in what asks for one.
VICUNA = (
    "{{ 'be kind' }}{% for message in messages %}{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'] }}"
    "{% else %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def learnt(tokenizer: PreTrainedTokenizerFast, row: Any) -> str:
    """The row's text, with what is learnt in brackets."""
    tokens = Encoder(tokenizer).encode(row, "a.jsonl")
    text, inside = "", False
    for token, one in zip(tokens.ids, tokens.learnt, strict=True):
        text += "[" * (one and not inside) + "]" * (inside and not one) + tokenizer.decode([token])
        inside = one
    return text + "]" * inside


def chat(*messages: dict[str, Any]) -> Chat:
    return Chat(messages, "line 7")


class TestWhatIsLearnt:
    def test_a_text_and_its_end(self) -> None:
        assert learnt(make_tokenizer(), PlainText("the film", "")) == "[the film</s>]"
        assert learnt(make_tokenizer(adds_bos=True), PlainText("the film", "")) == "[<s>the film</s>]"

    def test_a_begin_token_in_the_text_is_not_doubled(self) -> None:
        assert learnt(make_tokenizer(adds_bos=True), PlainText("<s>the film", "")) == "[<s>the film</s>]"

    def test_a_completion_and_its_end(self) -> None:
        row = PromptCompletion("the film", " is warm", "")
        assert learnt(make_tokenizer(), row) == "the film[ is warm</s>]"
        assert learnt(make_tokenizer(adds_bos=True), row) == "<s>the film[ is warm</s>]"

    def test_a_prompt_keeps_the_tokens_it_has_alone(self) -> None:
        """Joined, "film" would be cut otherwise; but the model is going to see the prompt as it is alone."""
        tokenizer = make_tokenizer()
        alone = tokenizer("the fi", add_special_tokens=False)["input_ids"]
        joint = tokenizer("the film", add_special_tokens=False)["input_ids"]
        assert joint[: len(alone)] != alone
        tokens = Encoder(tokenizer).encode(PromptCompletion("the fi", "lm", ""), "")
        assert tokens.ids[: len(alone)] == alone
        assert learnt(tokenizer, PromptCompletion("the fi", "lm", "")) == "the fi[lm</s>]"

    @pytest.mark.parametrize(
        ("template", "adds_bos", "one_turn", "two_turns"),
        [
            (
                CHATML, False,
                "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n[is warm<|im_end|>]\n",
                "<|im_start|>user\nand it<|im_end|>\n<|im_start|>assistant\n[was dull<|im_end|>]\n",
            ),
            (
                LLAMA2, True,
                "<s>[INST] the film [/INST][ is warm </s>]",
                "<s>[INST] and it [/INST][ was dull </s>]",
            ),
            (
                MARKED, False,
                "user>the film\nassistant>[is warm</s>]\n",
                "user>and it\nassistant>[was dull</s>]\n",
            ),
        ],
        ids=["chatml", "llama", "markers"],
    )  # fmt: skip
    def test_all_turns_of_the_assistant_and_their_ends(
        self, template: str, adds_bos: bool, one_turn: str, two_turns: str
    ) -> None:
        tokenizer = make_tokenizer(template, adds_bos=adds_bos)
        assert learnt(tokenizer, chat(QUESTION, ANSWER)) == one_turn
        assert learnt(tokenizer, chat(QUESTION, ANSWER, *MORE)) == one_turn + two_turns

    @pytest.mark.parametrize("template", [CHATML, MARKED, PLAIN], ids=["chatml", "markers", "plain"])
    def test_the_tokens_are_those_of_the_template(self, template: str) -> None:
        tokenizer = make_tokenizer(template)
        messages = [{"role": "system", "content": "so"}, QUESTION, ANSWER, *MORE, QUESTION]
        tokens = Encoder(tokenizer).encode(chat(*messages), "")
        assert tokens.ids == tokenizer.apply_chat_template(messages)["input_ids"]

    def test_the_answer_begins_where_the_model_is_going_to_begin(self) -> None:
        """Here the template ends with a blank, which the answer's first word would swallow."""
        spaced = PLAIN.replace("'>'", "': '").replace("assistant>", "assistant: ")
        tokenizer = make_tokenizer(spaced)
        given = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True)["input_ids"]
        assert tokenizer.apply_chat_template(CHAT)["input_ids"][: len(given)] != given
        tokens = Encoder(tokenizer).encode(chat(*CHAT), "")
        assert (tokens.ids[: len(given)], tokens.learnt.index(True)) == (given, len(given))

    @pytest.mark.parametrize(
        ("template", "before", "turn"),
        [
            (CHATML, "<|im_start|>assistant\n", "[hello<|im_end|>]\n"),
            (SYSTEMATIC, "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>assistant\n", "[hello<|im_end|>]\n"),
            (TRIMMED, "<|im_start|>assistant\n\n", "[hello<|im_end|>]\n"),
            (VICUNA, "be kind ASSISTANT:", "[ hello</s>]"),
            (MARKED, "assistant>", "[hello</s>]\n"),
        ],
        ids=["chatml", "its own system text", "trimmed", "blank", "markers"],
    )
    @pytest.mark.parametrize("content", ["hello", "ahello", "bhello"])
    def test_what_stands_before_a_greeting_is_given(self, template: str, before: str, turn: str, content: str) -> None:
        """Nobody asks the model to write its own role, nor the system text that a template puts first."""
        tokenizer, greeting = make_tokenizer(template), {"role": "assistant", "content": content}
        turn = turn.replace("hello", content)
        assert learnt(tokenizer, chat(greeting)) == before + turn
        assert learnt(tokenizer, chat(greeting, QUESTION)).startswith(before + turn)
        tokens = Encoder(tokenizer).encode(chat(greeting, *CHAT), "")
        assert tokens.ids == tokenizer.apply_chat_template([greeting, *CHAT])["input_ids"]

    @pytest.mark.parametrize(
        ("template", "before"),
        [
            (CHATML, "<|im_start|>assistant\n"),
            (VICUNA, "be kind ASSISTANT:"),
            (CHATML.replace("message['content']", "'so ' + message['content']"), "<|im_start|>assistant\nso "),
        ],
        ids=["all", "up to where it is asked", "more than is asked"],
    )
    def test_how_much_stands_before_a_greeting(self, template: str, before: str) -> None:
        """Up to where an answer is asked for, unless what follows is words of the template's own."""
        found = ChatTemplate(make_tokenizer(template)).before_first({"role": "assistant", "content": "hello"})
        assert found == before

    @pytest.mark.parametrize(
        "refusal",
        [
            "{% if add_generation_prompt and messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}",
            "{% if messages[0].content | length < 3 %}{{ raise_exception('too short') }}{% endif %}",
        ],
        ids=["asks after a user only", "short messages"],
    )
    def test_a_template_may_refuse_what_only_we_ask_of_it(self, refusal: str) -> None:
        wanted = "<|im_start|>assistant\n[hello<|im_end|>]\n"
        tokenizer = make_tokenizer(refusal + CHATML)
        assert learnt(tokenizer, chat({"role": "assistant", "content": "hello"})) == wanted
        assert learnt(tokenizer, chat({"role": "assistant", "content": "hello"}, QUESTION)).startswith(wanted)

    @pytest.mark.parametrize("content", ["  hello \n", "", "\n\nhello"])
    def test_a_greeting_that_is_trimmed(self, content: str) -> None:
        greeting = {"role": "assistant", "content": content}
        wanted = f"<|im_start|>assistant\n\n[{content.strip()}<|im_end|>]\n"
        assert learnt(make_tokenizer(TRIMMED), chat(greeting)) == wanted

    def test_an_end_is_put_where_the_template_has_none(self) -> None:
        assert learnt(make_tokenizer(PLAIN), chat(*CHAT)) == "user>the film\nassistant>[is warm\n</s>]"

    def test_the_ends_are_remembered(self) -> None:
        for template, end in ((CHATML, IM_END), (LLAMA2, EOS), (MARKED, EOS), (PLAIN, EOS)):
            tokenizer = make_tokenizer(template)
            encoder = Encoder(tokenizer)
            encoder.encode(chat(*CHAT, *MORE), "")
            assert encoder.end_ids == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end)}

    @pytest.mark.parametrize("row", [PlainText("the film", ""), PromptCompletion("the", " film", ""), chat(*CHAT)])
    def test_the_end_is_learnt_where_it_is_the_padding_too(self, row: Any) -> None:
        tokenizer = make_tokenizer(MARKED, pad=EOS)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        tokens = Encoder(tokenizer).encode(row, "")
        assert tokens.learnt[tokens.ids.index(tokenizer.eos_token_id)]
        assert learnt(tokenizer, row) == learnt(make_tokenizer(MARKED, pad=PAD), row)

    def test_nothing_of_a_row_without_labels(self) -> None:
        tokenizer = make_tokenizer()
        encoder = Encoder(tokenizer)
        for row, text in (
            (PlainText("the film", ""), "the film</s>"),
            (PromptCompletion("the film", None, ""), "the film"),
            (chat(QUESTION), "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n"),
        ):
            tokens = encoder.encode(row, "", is_labelled=False)
            assert (tokenizer.decode(tokens.ids), any(tokens.learnt)) == (text, False)


class TestTemplates:
    def test_one_that_rewrites_earlier_turns_is_refused_with_the_row_and_the_remedy(self) -> None:
        thinking = {"role": "assistant", "content": "hm</think>is warm"}
        encoder = Encoder(make_tokenizer(FORGETFUL))
        encoder.encode(chat(QUESTION, thinking), "a.jsonl")
        with pytest.raises(TrainerError) as caught:
            encoder.encode(chat(QUESTION, thinking, *MORE), "a.jsonl")
        assert caught.value.code == ExitCode.DATA_INVALID
        assert caught.value.message.startswith("a.jsonl line 7: the chat template writes the beginning")
        assert "{% generation %}" in caught.value.hint

    def test_its_own_refusal_is_told(self) -> None:
        with pytest.raises(Unlearnable, match=r"refused by the chat template \(roles must alternate user/assistant"):
            Encoder(make_tokenizer(LLAMA2)).encode(chat(QUESTION, QUESTION, ANSWER), "")

    def test_so_is_that_of_a_greeting(self) -> None:
        with pytest.raises(Unlearnable, match=r"refused by the chat template \(roles must alternate user/assistant"):
            Encoder(make_tokenizer(LLAMA2)).encode(chat(ANSWER, *CHAT), "")

    def test_two_begin_tokens_are_refused(self) -> None:
        doubled = "{{ bos_token }}{{ bos_token }}" + PLAIN
        with pytest.raises(TrainerError, match=r"a\.jsonl line 7: the chat template begins a text with two begin"):
            Encoder(make_tokenizer(doubled, adds_bos=True)).encode(chat(*CHAT), "a.jsonl")

    def test_none_is_refused_for_chats_alone(self) -> None:
        encoder = Encoder(make_tokenizer(None))
        encoder.encode(PlainText("the film", ""), "")
        with pytest.raises(TrainerError, match="no chat template") as caught:
            encoder.encode(chat(*CHAT), "")
        assert caught.value.code == ExitCode.MODEL_INVALID

    def test_markers_around_nothing_learn_nothing(self) -> None:
        """As where a model's template has its markers in a branch that is not taken."""
        empty = "{% for message in messages %}{{ message['content'] }}{% endfor %}{% generation %}{% endgeneration %}"
        assert not any(Encoder(make_tokenizer(empty)).encode(chat(*CHAT), "").learnt)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TrainerError, match="no end token"):
        Encoder(tokenizer)
