"""Reads a row's chat: messages of {role, content} or ShareGPT's turns, and the functions that they may call."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.sources import Columns
from finetune_trainer.data.columns import is_unicode, of_wrong_type, optional_in, optional_text_in, parsed, value_in
from finetune_trainer.data.formats import Row, shown
from finetune_trainer.data.generation_rows import ASSISTANT, SYSTEM, Chat
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.sharegpt import Unreadable, as_messages, is_turn
from finetune_trainer.errors import TrainerError


def read_chat(row: Row, column: str, columns: Columns, report: DataReport, is_labelled: bool) -> Chat | None:
    """The chat in a column, or None when the row is dropped. Raises TrainerError for what is no list of messages."""
    values = parsed(value_in(row, column, "messages", report))
    if values is not None and not isinstance(values, list):
        raise of_wrong_type(row, "messages", values, "a list of {role, content}, or the JSON of one", column, report)
    values = values or []
    try:
        read = as_messages(values)
    except Unreadable as error:
        report.drop_unusable(error.reason, f"{row.place}: {error.found}" if error.found else row.place)
        return None
    messages = [_message(value, number, row, report) for number, value in enumerate(read, start=1)]
    tools = _tools(row, columns, report)
    if not messages:
        report.drop_unusable("without messages", row.place)
    elif is_labelled and not any(message["role"] == ASSISTANT for message in messages):
        report.drop_unusable("without an assistant's message", row.place)
    else:
        # Beside messages that name themselves a column of this name may be about something else.
        if columns.system or any(map(is_turn, values)):
            messages = _with_system(messages, optional_text_in(row, columns, "system", report), row, report)
        if is_unicode(json.dumps([messages, tools], ensure_ascii=False, default=str)):
            return Chat(tuple(messages), row.place, tools)
        report.drop_unusable("with half a character", row.place)
    return None


def _with_system(messages: list[dict[str, Any]], system: str, row: Row, report: DataReport) -> list[dict[str, Any]]:
    """With what the row says to the assistant beside its messages, unless they begin so themselves."""
    if not system.strip():
        return messages
    if messages[0]["role"] != SYSTEM:
        return [{"role": SYSTEM, "content": system}, *messages]
    if messages[0].get("content") != system:
        report.note("with another system message than in the column beside it, which is left out", row.place)
    return messages


def _tools(row: Row, columns: Columns, report: DataReport) -> tuple[dict[str, Any], ...] | None:
    """The functions that a row offers, as a list or as the JSON of one; None where it has none."""
    value = optional_in(row, columns, "tools", report)
    tools = parsed(value)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        wanted = "a list of functions' JSON schemas, or the JSON of one"
        raise of_wrong_type(row, "tools", value, wanted, columns.tools or "tools", report)
    return tuple(tools)


def _message(value: Any, number: int, row: Row, report: DataReport) -> dict[str, Any]:
    """A message without its empty fields, which parquet fills in. The chat template judges roles and their order."""
    where = f"{report.source} {row.place}: message {number}"
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{where}: {shown(value)} has no role",
            'write messages as {"role": "user", "content": "..."}, or as {"from": "human", "value": "..."}',
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
