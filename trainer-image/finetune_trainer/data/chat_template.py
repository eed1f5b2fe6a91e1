"""Writes chats with a tokenizer's own template: as of one moment of the run, with the functions that a row offers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]] | None

_GENERATION_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = "strftime_now"
_SOMETHING = " is what a message may well say."


class Unlearnable(Exception):
    """Nothing can be learnt from a row; the message says why."""


class ChatTemplate:
    """A tokenizer's template, which may ask what time it is: it is always the given moment."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, moment: datetime | None = None) -> None:
        self._tokenizer = tokenizer
        self._moment = moment or datetime.now()
        self.asked_for: set[str] = set()
        """The moment as the template has had it written, in each of its formats."""

    def source(self, tools: Tools = None) -> str | None:
        """The template's text; of several one is for chats with tools, and the others are not for training."""
        template = self._tokenizer.chat_template
        if not isinstance(template, dict):
            return template
        return (template.get("tool_use") if tools is not None else None) or template.get("default")

    def has_markers(self, tools: Tools = None) -> bool:
        """Whether it marks what the assistant is to write."""
        return bool(_GENERATION_MARKER.search(self.source(tools) or ""))

    def text(self, messages: Messages, tools: Tools = None, *, add_generation_prompt: bool = False) -> str:
        """A chat as text. Raises Unlearnable when the template refuses it."""
        found: str = self._applied(messages, tools, tokenize=False, add_generation_prompt=add_generation_prompt)
        return found

    def before_first(self, message: dict[str, Any], tools: Tools = None) -> str:
        """What is written before what a chat's first message says: a system text of its own, tools, the role.

        That is what is the same whatever the message says; most templates fail on no messages. Up to where the template
        asks for an answer, where it does, as in later turns. Raises Unlearnable when the template refuses the message.
        """
        text = self.text([message], tools)
        before = _common_start(text, *self._others(message, tools))
        asking = ""
        with suppress(Unlearnable):  # as where it is asked for after a user's message only
            asking = self.text([message], tools, add_generation_prompt=True).removeprefix(text)
        end = before.rfind(asking) + len(asking) if asking in before else len(before)
        return before if before[end:].strip() else before[:end]

    def _others(self, message: dict[str, Any], tools: Tools) -> list[str]:
        """What is written of two messages that say something else; where they are refused, of two more like it."""

        def written(rest: str) -> list[str]:
            return [self.text([{"role": message["role"], "content": letter + rest}], tools) for letter in "ab"]

        try:
            return written("")
        except Unlearnable:
            return written(message.get("content") or _SOMETHING)

    def marked(self, messages: Messages, tools: Tools = None) -> tuple[list[int], list[bool]]:
        """A chat as tokens, and which of them lie between the markers. Raises Unlearnable."""
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        found = self._applied(messages, tools, **options)
        return list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]

    def writes(self, messages: Messages, tools: Tools) -> bool:
        """Whether the tools make a difference to what is written of a chat that it has not refused."""
        try:
            return self.text(messages, tools) != self.text(messages)
        except Unlearnable:  # without tools
            return True

    def _applied(self, messages: Messages, tools: Tools, **options: Any) -> Any:
        given = None if tools is None else list(tools)
        try:
            with self._clock_stopped(tools):
                return self._tokenizer.apply_chat_template(list(messages), tools=given, **options)
        except (TemplateError, TypeError, ValueError) as error:  # whatever a template does with what it did not expect
            words = " ".join(str(error).split())[:150]
            raise Unlearnable(f"refused by the chat template ({words})") from None

    @contextmanager
    def _clock_stopped(self, tools: Tools) -> Iterator[None]:
        """Put a stopped clock in the place of transformers' own, which takes none from its callers."""
        names = chat_template_utils._compile_jinja_template(self.source(tools)).globals
        names[_CLOCK] = self._written
        try:
            yield
        finally:
            del names[_CLOCK]

    def _written(self, format: str) -> str:
        written = self._moment.strftime(format)
        self.asked_for.add(written)
        return written


def _common_start(first: str, *others: str) -> str:
    """What the texts begin with alike."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(first, *others, strict=False))
    return first[: sum(1 for _ in alike)]
