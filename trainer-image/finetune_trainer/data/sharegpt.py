"""Makes chat messages of ShareGPT's turns, which say `from` and `value` for role and content, and human and gpt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from finetune_trainer.data.formats import shown
from finetune_trainer.data.generation_rows import ASSISTANT, SYSTEM, USER

_CALL = "function_call"
_ROLES = {
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "assistant": ASSISTANT,
    "system": SYSTEM,
    "tool": "tool",
    "observation": "tool",
    _CALL: ASSISTANT,
}


class Unreadable(Exception):
    """A turn that makes its conversation unusable: why, and what stands there."""

    def __init__(self, reason: str, found: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.found = found


def is_turn(value: Any) -> bool:
    """Whether this is a turn of ShareGPT's, whatever it lacks, and no message."""
    return isinstance(value, dict) and value.get("role") is None and not value.keys().isdisjoint(("from", "value"))


def as_messages(values: Sequence[Any]) -> list[Any]:
    """Turns as messages; what is a message, or neither, stays as it is. Raises Unreadable."""
    values = _without_idle(values)
    messages = [_message(value) if is_turn(value) else value for value in values]
    for value, message in zip(values, messages, strict=True):
        role = message.get("role") if isinstance(message, dict) else None
        if is_turn(value) and role == ASSISTANT:  # as where a long conversation was cut up
            raise Unreadable("with an answer before any question")
        if role != SYSTEM:
            break
    return messages


def _without_idle(values: Sequence[Any]) -> Sequence[Any]:
    """Without empty turns that nothing answers: a system text that was left empty, a question at the end."""
    said = [value for value in values if not _is_empty(value, SYSTEM)]
    return said[:-1] if said and _is_empty(said[-1], USER) else said


def _is_empty(value: Any, role: str) -> bool:
    return is_turn(value) and _role(value) == role and _is_blank(value.get("value"))


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _role(turn: dict[str, Any]) -> str | None:
    sender = turn.get("from")
    return _ROLES.get(sender) if isinstance(sender, str) else None


def _message(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn's message; a value that is no text stays, to be refused as the content of any message is."""
    sender, value, role = turn.get("from"), turn.get("value"), _role(turn)
    if role is None:
        raise Unreadable(f"with a from that is none of {', '.join(_ROLES)}", shown(sender))
    if _is_blank(value):
        raise Unreadable("with an empty value", f"from {sender}")
    if sender == _CALL:
        return {"role": role, "tool_calls": [{"type": "function", "function": call} for call in _calls(value)]}
    return {"role": role, "content": value}


def _calls(value: Any) -> list[dict[str, Any]]:
    """The functions that are called, of the JSON of one call or of a list of them."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        found = None
    calls = found if isinstance(found, list) and found else [found]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call for call in calls):
        raise Unreadable(f"with a {_CALL} that is not the JSON of {{name, arguments}}", shown(value))
    return [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
