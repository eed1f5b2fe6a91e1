"""Texts, completions and chats as tokens, and which of the tokens are learnt.

The end of a text, of a completion and of an assistant's turn is learnt like any other token, by its place and never by
its number: where the padding token is the end token, a model that does not learn it would never stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_trainer.data.chat_template import ChatTemplate, Messages, Tools
from finetune_trainer.data.formats import shown
from finetune_trainer.data.generation_rows import (
    ASSISTANT,
    Chat,
    GenerationRow,
    Instruction,
    PlainText,
    PromptCompletion,
)
from finetune_trainer.errors import TrainerError


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row as tokens."""

    ids: list[int]
    learnt: list[bool]
    """Whether each token is one that the model should learn to write."""


class Encoder:
    """Makes tokens of rows with a model's tokenizer and, for chats, its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, moment: datetime | None = None) -> None:
        if tokenizer.eos_token_id is None:
            raise TrainerError(
                ExitCode.MODEL_INVALID,
                "the tokenizer has no end token, so a model could not learn to stop",
                "set eos_token in tokenizer_config.json",
            )
        self._tokenizer = tokenizer
        self._eos: int = tokenizer.eos_token_id
        self._special = {self._eos, *tokenizer.all_special_ids}
        self._special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        # Of the tokens that a tokenizer puts around a text only the first is wanted; the end is put here.
        bos = tokenizer.bos_token_id
        self._start: list[int] = [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
        self.template = ChatTemplate(tokenizer, moment)
        self.end_ids: set[int] = {self._eos}
        """The tokens that ended what was learnt so far; generation has to stop at them."""

    def encode(self, row: GenerationRow, source: str, is_labelled: bool = True) -> Tokens:
        """A row's tokens; of one without labels none is learnt.

        Raises Unlearnable, or TrainerError when the tokenizer or its template is at fault, naming the source's row.
        """
        tokens = self._encode(row, f"{source} {row.place}", is_labelled)
        return tokens if is_labelled else Tokens(tokens.ids, [False] * len(tokens.ids))

    def put(self, row: Instruction) -> Chat | PromptCompletion:
        """An instruction as this tokenizer's models are used to reading one: as a chat where they know chats."""
        return row.as_prompt() if self.template.source() is None else row.as_chat()

    def _encode(self, row: GenerationRow, where: str, is_labelled: bool) -> Tokens:
        match row:
            case PlainText(text=text):
                ids = [*self._started(self._ids(text)), self._eos]
                return Tokens(ids, [True] * len(ids))
            case PromptCompletion(prompt=prompt, completion=None):
                ids = self._started(self._ids(prompt))
                return Tokens(ids, [False] * len(ids))
            case PromptCompletion(prompt=prompt, completion=str(completion)):
                given = self._ids(prompt)
                ids = [*self._started(self._extended(given, prompt, prompt + completion)), self._eos]
                num_given = len(self._started(given))
                return Tokens(ids, [False] * num_given + [True] * (len(ids) - num_given))
            case Instruction():
                return self._encode(self.put(row), where, is_labelled)
            case Chat(messages=messages, tools=tools):
                return self._chat(messages, tools, where, is_labelled)
            case _:
                raise AssertionError(row)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _started(self, ids: list[int]) -> list[int]:
        """With the begin token that this tokenizer puts before a text, once."""
        return ids if ids[:1] == self._start else [*self._start, *ids]

    def _extended(self, ids: list[int], text: str, longer: str) -> list[int]:
        """Tokens of a longer text that begin with those of its beginning.

        When the model is used it is given the beginning alone, as those tokens; one that spans the border between
        them would never occur.
        """
        joint = self._ids(longer)
        return joint if joint[: len(ids)] == ids else ids + self._ids(longer[len(text) :])

    def _chat(self, messages: Messages, tools: Tools, where: str, is_labelled: bool) -> Tokens:
        template = self.template
        if template.source(tools) is None:
            raise TrainerError(
                ExitCode.MODEL_INVALID,
                "the rows are chats, but the model's tokenizer has no chat template",
                "use an instruction-tuned model, add chat_template.jinja to the model, or give prompt and completion",
            )
        ends_with_assistant = messages[-1]["role"] == ASSISTANT
        if not is_labelled:
            text = template.text(messages, tools, add_generation_prompt=not ends_with_assistant)
            tokens = Tokens(self._ids(text), [])
        elif template.has_markers(tools):
            tokens = self._marked_chat(messages, tools)
        else:
            tokens = self._split_chat(messages, tools, where)
        if self._start and tokens.ids[:2] == self._start * 2:
            raise TrainerError(
                ExitCode.MODEL_INVALID,
                f"{where}: the chat template begins a text with two begin tokens",
                "remove one from the template",
            )
        return self._ended(tokens, ends_with_assistant)

    def _marked_chat(self, messages: Messages, tools: Tools) -> Tokens:
        """By the template's own {% generation %} markers, with the special token after each marked part."""
        ids, learnt = self.template.marked(messages, tools)
        for place in range(1, len(ids)):
            follows = learnt[place - 1] and not learnt[place]
            if follows and ids[place - 1] not in self._special and ids[place] in self._special:
                learnt[place] = True
        return Tokens(ids, learnt)

    def _split_chat(self, messages: Messages, tools: Tools, where: str) -> Tokens:
        """By what the template adds to a conversation when an assistant's message is added to it."""
        text, ids, learnt = "", list[int](), list[bool]()
        for number, message in enumerate(messages):
            if message["role"] == ASSISTANT:
                given = (
                    self.template.text(messages[:number], tools, add_generation_prompt=True)
                    if number
                    else self.template.before_first(message, tools)
                )
                ids = self._grown(ids, text, given, where)
                learnt += [False] * (len(ids) - len(learnt))
                text = self.template.text(messages[: number + 1], tools)
                ids = self._grown(ids, given, text, where)
                learnt += self._up_to_the_end(ids[len(learnt) :])
        ids = self._grown(ids, text, self.template.text(messages, tools), where)
        return Tokens(ids, learnt + [False] * (len(ids) - len(learnt)))

    def _grown(self, ids: list[int], text: str, longer: str, where: str) -> list[int]:
        if not longer.startswith(text):
            raise TrainerError(
                ExitCode.DATA_INVALID,
                f"{where}: the chat template writes the beginning of a conversation otherwise once more follows "
                f"(... {shown(text[-30:])}), so it cannot be told what the assistant is to write",
                "mark the assistant's part in the template with {% generation %} and {% endgeneration %}, or give "
                "prompt and completion",
            )
        return self._extended(ids, text, longer)

    def _up_to_the_end(self, turn: list[int]) -> list[bool]:
        """All of a turn but blanks after its last special token, which the model will never be asked for."""
        ends = [place for place, token in enumerate(turn) if token in self._special]
        if ends and not self._tokenizer.decode(turn[ends[-1] + 1 :]).strip():
            return [True] * (ends[-1] + 1) + [False] * (len(turn) - ends[-1] - 1)
        return [True] * len(turn)

    def _ended(self, tokens: Tokens, ends_with_assistant: bool) -> Tokens:
        """With an end token after the last turn, if it is the assistant's and the template puts none there."""
        ids, learnt = tokens.ids, tokens.learnt
        if not any(learnt):
            return tokens
        last = max(place for place, one in enumerate(learnt) if one)
        if ends_with_assistant and ids[last] not in self._special:
            ids, learnt = [*ids[: last + 1], self._eos], [*learnt[: last + 1], True]
        after = [*learnt[1:], False]
        self.end_ids |= {
            token
            for token, one, next_one in zip(ids, learnt, after, strict=True)
            if one and not next_one and token in self._special
        }
        return Tokens(ids, learnt)
