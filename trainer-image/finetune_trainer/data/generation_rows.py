"""What a row of text generation is: a text, a prompt with its completion, an instruction with its output, or a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.data.selection import but_for_spaces

ASSISTANT, SYSTEM, USER = "assistant", "system", "user"
_INSTRUCTING = (SYSTEM, "developer")
# The prompts of Stanford's Alpaca, which its data are known with.
_ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
_WITH_INPUT = ", paired with an input that provides further context"


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


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction, what it is about, and the output, which is learnt; None where no answer is known.

    How it is put to a model depends on whether that knows chats.
    """

    instruction: str
    input: str
    output: str | None
    place: str
    system: str = ""
    label: str = ""

    def as_chat(self) -> Chat:
        """For a model with a chat template: the user's message and the assistant's."""
        parts = {SYSTEM: self.system, USER: _paragraphs(self.instruction, self.input), ASSISTANT: self.output}
        return Chat(tuple({"role": role, "content": text} for role, text in parts.items() if text), self.place)

    def as_prompt(self) -> PromptCompletion:
        """For a model without one: Alpaca's own prompt, which the row's system text may begin instead."""
        parts = {"Instruction": self.instruction, "Input": self.input}
        listed = [f"### {name}:\n{text}" for name, text in parts.items() if text]
        start = self.system or _ALPACA.format(_WITH_INPUT if self.input else "")
        return PromptCompletion(_paragraphs(start, *listed, "### Response:\n"), self.output, self.place)

    def key(self) -> str:
        """All of it, as the chat that says the same."""
        return self.as_chat().key()

    def given(self) -> str:
        """All but the output."""
        return self.as_chat().given()


GenerationRow = PlainText | PromptCompletion | Instruction | Chat


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)
