"""Rows to texts, prompts with completions, or chats: told apart by their columns, and checked."""

from __future__ import annotations

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
from finetune_trainer.data.selection import normalise
from finetune_trainer.errors import TrainerError

ASSISTANT = "assistant"
_INSTRUCTING = ("system", "developer")
_FORMS = {"text": ("text",), "prompt and completion": ("prompt", "completion"), "messages": ("messages",)}
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text that is learnt as a whole."""

    text: str
    place: str
    label: str = ""

    def key(self) -> str:
        """The text as it counts for duplicates: without regard to case, punctuation and spaces."""
        return normalise(self.text)

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
        return normalise(self.prompt) + "\n" + normalise(self.completion or "")

    def given(self) -> str:
        """The prompt."""
        return normalise(self.prompt)


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages, of which the assistant's are learnt."""

    messages: tuple[dict[str, Any], ...]
    place: str
    label: str = ""

    def key(self) -> str:
        """All messages as they count for duplicates."""
        return _key(self.messages)

    def given(self) -> str:
        """What the first answer follows: the messages before the assistant's first one to somebody's question."""
        is_asked = False
        for number, message in enumerate(self.messages):
            if is_asked and message["role"] == ASSISTANT:
                return _key(self.messages[:number])
            is_asked = is_asked or message["role"] not in (ASSISTANT, *_INSTRUCTING)
        return self.key()


def _key(messages: Sequence[dict[str, Any]]) -> str:
    return "\n".join(normalise(f"{message['role']} {message.get('content') or ''}") for message in messages)


GenerationRow = PlainText | PromptCompletion | Chat


def load(run: Run) -> Rows[GenerationRow]:
    """Read, check, de-duplicate and split the rows of a job. Raises TrainerError."""
    given = [form for form, fields in _FORMS.items() if any(getattr(run.spec.data.columns, one) for one in fields)]
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
    for form, fields in _FORMS.items():
        if any(getattr(columns, field) for field in fields):
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
    values = value_in(row, column, "messages", report)
    if values is not None and not isinstance(values, list):
        raise of_wrong_type(row, "messages", values, "a list of {role, content}", column, report)
    messages = tuple(_message(value, number, row, report) for number, value in enumerate(values or (), start=1))
    if not messages:
        report.drop_unusable("without messages", row.place)
    elif is_labelled and not any(message["role"] == ASSISTANT for message in messages):
        report.drop_unusable("without an assistant's message", row.place)
    elif not all(is_unicode(text) for message in messages for text in message.values() if isinstance(text, str)):
        report.drop_unusable("with half a character", row.place)
    else:
        return Chat(messages, row.place)
    return None


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
    if not isinstance(content, str) and (content is not None or message.keys() == {"role"}):
        what = "has no content" if content is None else f"has content of type {type(content).__name__}, not a string"
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{where} ({shown(value['role'])}) {what}",
            'write messages as {"role": "user", "content": "..."}; only text can be learnt',
        )
    return message
