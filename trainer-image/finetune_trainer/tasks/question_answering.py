"""Extractive question answering: the piece of a text that answers a question, or that there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerBase

from finetune_api.run import Run
from finetune_api.v1alpha1.training import Metric
from finetune_trainer.answer_metrics import AnswerMetrics, AnswerWindow, Asked
from finetune_trainer.batching import UNLABELED, Batch, Example, pad
from finetune_trainer.data import question_answering as data
from finetune_trainer.data.rows import Part
from finetune_trainer.model_checks import check_directory
from finetune_trainer.models import Loaded, load_model, load_tokenizer
from finetune_trainer.tasks.limits import check_usable, check_vocabulary, max_length
from finetune_trainer.tasks.windows import Window, check_tells_places, windows

DEFAULT_MAX_LENGTH = 384
_NOT_KNOWN = (UNLABELED, UNLABELED)


class QuestionAnswering:
    """The rows of a job as examples, and the model that finds answers. A window's start and its end are two units.

    The classes of a unit are the window's tokens. A context that is too long is read in windows that overlap, the
    question before each of them. Where a window has no answer, both units point at [CLS], or at the first token of
    models without one.
    """

    model_class = "AutoModelForQuestionAnswering"

    def __init__(self, run: Run, questions: data.Questions, directory: Path, tokenizer: PreTrainedTokenizerBase):
        self._questions = questions
        self._directory = directory
        self._max_dropped = run.spec.data.max_dropped_fraction
        self._asked: dict[int, Asked] = {}
        self._windows: dict[tuple[int, int], AnswerWindow] = {}
        self._num_rows = 0
        self.tokenizer = tokenizer
        self.max_length = max_length(run, directory, tokenizer, DEFAULT_MAX_LENGTH)
        self.labels: Sequence[str] = ()
        rows = questions.rows
        self.train: Sequence[Example] = [
            example for part in (rows.train, rows.replay, rows.unlabeled) for example in self._examples(part, False)
        ]
        self.evaluation: Sequence[Example] = self._examples(rows.evaluation, True)
        self.retention: Sequence[Example] = self._examples(rows.retention, True)
        self.data_report: Sequence[str] = [str(report) for report in rows.reports()]
        self.baseline: float | None = None if run.spec.metric() is Metric.LOSS else questions.share_unanswerable()

    @classmethod
    def read(cls, run: Run, directory: Path) -> QuestionAnswering:
        """Read and tokenise a run's data. The model directory is checked first, because that takes no time."""
        check_directory(directory)
        tokenizer = load_tokenizer(directory)
        check_tells_places(tokenizer, directory)
        return cls(run, data.load(run), directory, tokenizer)

    def load_model(self, directory: Path | None = None) -> Loaded:
        """A pretrained model with a head of two outputs a token: whether the answer begins and ends there."""
        directory = directory or self._directory
        loaded = load_model(AutoModelForQuestionAnswering, directory, self.tokenizer, num_labels=2)
        check_vocabulary(loaded, directory, (*self.train, *self.evaluation, *self.retention))
        return loaded

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors; targets are token numbers [U], starts and ends by turns.

        `possible` are those that may be either [B, L]: the context, and the one that stands for no answer.
        """
        inputs = pad(examples, self.tokenizer.pad_token_id)
        possible_BL = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
        for possible_L, example in zip(possible_BL, examples, strict=True):
            window = self._windows[example.row, example.window]
            possible_L[window.first : window.last + 1] = True
            possible_L[window.null] = True
        targets_U = torch.tensor([example.target for example in examples]).flatten()
        num_tokens = sum(len(example.input_ids) for example in examples)
        return Batch(inputs, targets_U, num_tokens, possible=possible_BL)

    def num_units(self, examples: Sequence[Example]) -> int:
        """Two for every window of which is known where its answer is, or that it has none."""
        return 2 * sum(example.target != _NOT_KNOWN for example in examples)

    def unit_logits(self, output: Any, batch: Batch) -> Tensor:
        """The logits over the window's tokens; -inf where no answer can be."""
        logits_B2L = torch.stack([output.start_logits, output.end_logits], dim=1)
        possible_BL = cast("Tensor", batch.possible)
        return logits_B2L.masked_fill(~possible_BL.unsqueeze(1), -torch.inf).flatten(0, 1)

    def new_metrics(self) -> AnswerMetrics:
        """Exact match, F1 and loss."""
        return AnswerMetrics(self._asked, self._windows, self._questions.may_be_unanswerable)

    def probes(self, count: int) -> dict[str, Any]:
        """The first evaluation rows."""
        rows = self._questions.rows.evaluation.rows[:count]
        return {"text": [row.question for row in rows], "text_pair": [row.context for row in rows]}

    def _examples(self, part: Part[data.Question] | None, is_judged: bool) -> list[Example]:
        """The rows as examples. Judged rows are kept even if no window holds the answer: it counts as not found."""
        if part is None:
            return []
        rows = self._with_room(part)
        questions, contexts = [row.question for row in rows], [row.context for row in rows]
        examples: list[Example] = []
        for row, cut in zip(rows, windows(self.tokenizer, questions, contexts, self.max_length), strict=True):
            found = [_answer_window(window, self.tokenizer.cls_token_id) for window in cut]
            targets = _targets(row, found)
            if targets is None:
                reason = "with an answer that no window holds"
                if not is_judged:
                    part.report.num_kept -= 1
                    part.report.drop_unusable(reason, row.place)
                    continue
                part.report.note(reason, row.place)
                targets = [_NOT_KNOWN] * len(cut)
            if len(cut) > 1:
                part.report.note(f"longer than {self.max_length} tokens, read in windows", row.place)
            if is_judged:
                self._asked[self._num_rows] = Asked(
                    row.context, tuple(text for text, _ in row.answers or ()), num_windows=len(cut)
                )
            for number, (window, place, target) in enumerate(zip(cut, found, targets, strict=True)):
                examples.append(Example(window.input_ids, window.token_type_ids, target, self._num_rows, window=number))
                # Of a row that is not judged nobody reads the answer; the places take memory.
                self._windows[self._num_rows, number] = place if is_judged else replace(place, places=())
            self._num_rows += 1
        check_usable(part.report, self._max_dropped, bool(examples))
        return examples

    def _with_room(self, part: Part[data.Question]) -> list[data.Question]:
        """The rows whose question leaves half of the input to the context."""
        room = self.max_length // 2 - self.tokenizer.num_special_tokens_to_add(pair=True)
        questions = [row.question for row in part.rows]
        encoded = self.tokenizer(questions, add_special_tokens=False)["input_ids"] if questions else []
        kept = []
        for row, ids in zip(part.rows, encoded, strict=True):
            if len(ids) <= room:
                kept.append(row)
            else:
                part.report.num_kept -= 1
                part.report.drop_unusable(f"with a question of more than {room} tokens", row.place)
        return kept


def _answer_window(window: Window, cls_token_id: int | None) -> AnswerWindow:
    """Where in a window an answer may be, and which token stands for none."""
    context = [token for token, side in enumerate(window.sides) if side == 1]
    null = window.input_ids.index(cls_token_id) if cls_token_id in window.input_ids else 0
    first, last = (context[0], context[-1]) if context else (0, -1)
    return AnswerWindow(null, first, last, window.places[first : last + 1])


def _targets(row: data.Question, found: Sequence[AnswerWindow]) -> list[tuple[int, int]] | None:
    """The first and the last token of each window's answer; None if the row has an answer that no window holds whole.

    Of several answers the first is learnt.
    """
    if row.answers is None:
        return [_NOT_KNOWN] * len(found)
    nulls = [(window.null, window.null) for window in found]
    if not row.answers:
        return nulls
    text, start = row.answers[0]
    touched = [_tokens_within(window, start, start + len(text)) for window in found]
    ends = [
        (window.places[tokens[0]][0], window.places[tokens[-1]][1]) if tokens else None
        for window, tokens in zip(found, touched, strict=True)
    ]
    known = [span for span in ends if span is not None]
    if not known:
        return None
    whole = (min(begin for begin, _ in known), max(end for _, end in known))
    if whole not in known:
        return None
    return [
        (window.first + tokens[0], window.first + tokens[-1]) if span == whole else null
        for window, tokens, span, null in zip(found, touched, ends, nulls, strict=True)
    ]


def _tokens_within(window: AnswerWindow, start: int, end: int) -> list[int]:
    """The numbers of the context's tokens that have a part of what is between two characters."""
    return [token for token, (begin, after) in enumerate(window.places) if max(begin, start) < min(after, end)]
