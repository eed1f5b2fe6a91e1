"""Rows to texts, prompts with completions, or chats: told apart by their columns, and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import Columns
from finetune_trainer.data.columns import is_unicode, of_wrong_type, text_in, value_in
from finetune_trainer.data.formats import Row, shown
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Rows
from finetune_trainer.data.rows import load as load_rows
from finetune_trainer.data.selection import but_for_spaces
from finetune_trainer.errors import TrainerError

ASSISTANT = "assistant"
_INSTRUCTING = ("system", "developer")
_FORMS = {"text": ("text",), "prompt and completion": ("prompt", "completion"), "messages": ("messages",)}
_BESIDE = {"messages": ("tools",)}
"""Columns that belong to a form, but do not tell it: they are found beside others too."""
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text that is learnt as a whole."""

    text: str
    place: str
    label: str = ""

    def key(self) -> str:
        """The text as it counts for duplicates: what is written is learnt to the character, but for spaces."""
        return but_for_spaces(self.text)

    def given(self) -> str:
        """All of it: nothing in it is an answer."""
        return self.key()


@dataclass(frozen=True, slots=True)
class PromptCompletion:
    """A prompt, which is given, and its completion, which is learnt; None where no answer is known."""

    prompt: str
    completion: str | None
    place: str
    label: str = ""

    def key(self) -> str:
        """Both texts as they count for duplicates."""
        return but_for_spaces(self.prompt) + "\n" + but_for_spaces(self.completion or "")

    def given(self) -> str:
        """The prompt."""
        return but_for_spaces(self.prompt)


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages, of which the assistant's are learnt."""

    messages: tuple[dict[str, Any], ...]
    place: str
    tools: tuple[dict[str, Any], ...] | None = None
    """The functions that the assistant may call; None in a row that speaks of none."""
    label: str = ""

    def key(self) -> str:
        """All messages and tools as they count for duplicates."""
        return self._key(self.messages)

    def given(self) -> str:
        """What the first answer follows: the messages before the assistant's first one to somebody's question."""
        is_asked = False
        for number, message in enumerate(self.messages):
            if is_asked and message["role"] == ASSISTANT:
                return self._key(self.messages[:number])
            is_asked = is_asked or message["role"] not in (ASSISTANT, *_INSTRUCTING)
        return self.key()

    def _key(self, messages: Sequence[dict[str, Any]]) -> str:
        parts = [{**message, "content": but_for_spaces(message.get("content") or "")} for message in messages]
        return json.dumps([parts, self.tools or ()], sort_keys=True, default=str)


GenerationRow = PlainText | PromptCompletion | Chat


def load(run: Run) -> Rows[GenerationRow]:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    given = [form for form in _FORMS if _is_named(form, run.spec.data.columns)]
    if len(given) > 1:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.data.columns: names columns of {' and of '.join(given)}",
            "a job learns from one form of rows; leave the others out",
        )
    return load_rows(run, _check, lambda row: row.given())


def _check(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> GenerationRow | None:
    """The row in its form, or None when it is dropped."""
    match _form(row, columns, report):
        case "text":
            return _plain_text(row, columns, report)
        case "messages":
            return _chat(row, columns, report, is_labelled)
        case "prompt and completion":
            return _prompt_completion(row, columns, report, is_labelled)
        case _:
            report.drop_unusable("with empty text", row.place)
            return None


def _form(row: Row, columns: Columns, report: DataReport) -> str | None:
    """Which form a row has: that of the columns that are given, else of those it has; None where it is empty."""
    for form in _FORMS:
        if _is_named(form, columns):
            return form
    found = [form for form, fields in _FORMS.items() if any(row.values.get(field) is not None for field in fields)]
    if len(found) > 1:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source} {row.place}: has {' and '.join(found)}, and it is not said which to learn",
            "set data.columns to one of them, such as columns: {messages: messages}",
        )
    if not found and report.num_read == 1:
        names = [str(name) for name in row.values]
        listed = ", ".join(map(shown, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report.source} {row.place}: no column 'text', 'prompt' and 'completion', or 'messages'; "
            f"it has {listed or 'none'}",
            "set data.columns.text; or data.columns.prompt and completion; or data.columns.messages",
        )
    return found[0] if found else None


def _is_named(form: str, columns: Columns) -> bool:
    return any(getattr(columns, field) for field in (*_FORMS[form], *_BESIDE.get(form, ())))


def _plain_text(row: Row, columns: Columns, report: DataReport) -> PlainText | None:
    text = text_in(row, columns.text or "text", "text", report)
    if not text.strip():
        report.drop_unusable("with empty text", row.place)
    elif not is_unicode(text):
        report.drop_unusable("with half a character", row.place)
    else:
        return PlainText(text, row.place)
    return None


def _prompt_completion(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> PromptCompletion | None:
    prompt = text_in(row, columns.prompt or "prompt", "prompt", report)
    completion = text_in(row, columns.completion or "completion", "completion", report) if is_labelled else None
    if not prompt.strip():
        report.drop_unusable("without prompt", row.place)
    elif completion is not None and not completion.strip():
        report.drop_unusable("without completion", row.place)
    elif not all(map(is_unicode, (prompt, completion or ""))):
        report.drop_unusable("with half a character", row.place)
    else:
        return PromptCompletion(prompt, completion, row.place)
    return None


def _chat(row: Row, columns: Columns, report: DataReport, is_labelled: bool) -> Chat | None:
    column = columns.messages or "messages"
    values = _parsed(value_in(row, column, "messages", report))
    if values is not None and not isinstance(values, list):
        raise of_wrong_type(row, "messages", values, "a list of {role, content}, or the JSON of one", column, report)
    messages = tuple(_message(value, number, row, report) for number, value in enumerate(values or (), start=1))
    tools = _tools(row, columns, report)
    if not messages:
        report.drop_unusable("without messages", row.place)
    elif is_labelled and not any(message["role"] == ASSISTANT for message in messages):
        report.drop_unusable("without an assistant's message", row.place)
    elif not is_unicode(json.dumps([messages, tools], ensure_ascii=False, default=str)):
        report.drop_unusable("with half a character", row.place)
    else:
        return Chat(messages, row.place, tools)
    return None


def _tools(row: Row, columns: Columns, report: DataReport) -> tuple[dict[str, Any], ...] | None:
    """The functions that a row offers, as a list or as the JSON of one; None where it has none."""
    column = columns.tools or "tools"
    value = value_in(row, column, "tools", report) if columns.tools else row.values.get(column)
    tools = _parsed(value)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        wanted = "a list of functions' JSON schemas, or the JSON of one"
        raise of_wrong_type(row, "tools", value, wanted, column, report)
    return tuple(tools)


def _parsed(value: Any) -> Any:
    """What a string is the JSON of: CSV has nothing but strings, and Parquet holds no lists of different things."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value


def _message(value: Any, number: int, row: Row, report: DataReport) -> dict[str, Any]:
    """A message without its empty fields, which parquet fills in. The chat template judges roles and their order."""
    where = f"{report.source} {row.place}: message {number}"
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        is_sharegpt = isinstance(value, dict) and {"from", "value"} <= value.keys()
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{where}: {shown(value)} has no role",
            "write role for from and content for value, and user and assistant for human and gpt"
            if is_sharegpt
            else 'write messages as {"role": "user", "content": "..."}',
        )
    message = {name: part for name, part in value.items() if part is not None}
    content = message.get("content")
    if isinstance(content, list) and content and all(map(_is_text_part, content)):
        message["content"] = content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str) and (content is not None or message.keys() == {"role"}):
        what = "has no content" if content is None else f"has content of type {type(content).__name__}, not a string"
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{where} ({shown(value['role'])}) {what}",
            'write messages as {"role": "user", "content": "..."}; only text can be learnt',
        )
    return message


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
