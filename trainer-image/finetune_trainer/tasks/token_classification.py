"""Token classification: a tag for every word, such as the names in a text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from finetune_api.run import Run
from finetune_trainer.batching import NO_UNIT, UNLABELED, Batch, Example, at, pad, places
from finetune_trainer.data import token_classification as data
from finetune_trainer.data.rows import Part
from finetune_trainer.entity_metrics import EntityMetrics, TagScheme
from finetune_trainer.model_checks import check_directory
from finetune_trainer.models import Loaded, load_tokenizer
from finetune_trainer.tasks.classes import choose_classes
from finetune_trainer.tasks.limits import check_usable, check_vocabulary, max_length
from finetune_trainer.tasks.windows import Window, check_tells_places, windows

DEFAULT_MAX_LENGTH = 512


class TokenClassification:
    """The rows of a job as examples, and the model that tags their words. A unit is a word.

    Words are joined by spaces and read as the text they are, not one by one: so a tokenizer whose tokens hold the space
    before a word (RoBERTa's, Llama's) gives what the model was pretrained on. A word's tag is predicted at its first
    token. A row that is too long is read in windows that overlap; each word is a unit of one of them, that in which it
    has most of its surroundings.
    """

    model_class = "AutoModelForTokenClassification"

    def __init__(self, run: Run, tagged: data.TaggedRows, directory: Path, tokenizer: PreTrainedTokenizerBase):
        self._rows = tagged.rows
        self._directory = directory
        self._num_windows: dict[int, int] = {}
        self._num_rows = 0
        self.tokenizer = tokenizer
        self.max_length = max_length(run, directory, tokenizer, DEFAULT_MAX_LENGTH)
        self._classes = choose_classes(tagged.tags, AutoModelForTokenClassification, directory)
        self.labels: Sequence[str] = self._classes.labels
        self._scheme = TagScheme.of(self.labels, tagged.tags)
        self._max_dropped = run.spec.data.max_dropped_fraction
        rows = tagged.rows
        self.train: Sequence[Example] = [
            example for part in (rows.train, rows.replay, rows.unlabeled) for example in self._examples(part)
        ]
        self.evaluation: Sequence[Example] = self._examples(rows.evaluation)
        self.retention: Sequence[Example] = self._examples(rows.retention)
        self.data_report: Sequence[str] = [*map(str, rows.reports()), *self._classes.report]
        self.baseline: float | None = tagged.majority().get(run.spec.metric())

    @classmethod
    def read(cls, run: Run, directory: Path) -> TokenClassification:
        """Read and tokenise a run's data. The model directory is checked first, because that takes no time."""
        check_directory(directory)
        tokenizer = load_tokenizer(directory)
        check_tells_places(tokenizer, directory)
        return cls(run, data.load(run), directory, tokenizer)

    def load_model(self, directory: Path | None = None) -> Loaded:
        """A pretrained model with a head of one output a tag."""
        is_own, directory = directory is None, directory or self._directory
        loaded = self._classes.load_model(AutoModelForTokenClassification, directory, self.tokenizer, is_own=is_own)
        check_vocabulary(loaded, directory, (*self.train, *self.evaluation, *self.retention))
        return loaded

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors; targets are the words' tag numbers [U]."""
        inputs = pad(examples, self.tokenizer.pad_token_id)
        targets_BL = torch.full(inputs["input_ids"].shape, NO_UNIT)
        for targets_L, example in zip(targets_BL, examples, strict=True):
            targets_L[: len(example.input_ids)] = torch.tensor(example.target)
        units_U = places(targets_BL != NO_UNIT)
        num_tokens = sum(len(example.input_ids) for example in examples)
        return Batch(inputs, at(targets_BL, units_U), num_tokens, units_U)

    def num_units(self, examples: Sequence[Example]) -> int:
        """The words with a tag."""
        return sum(target >= 0 for example in examples for target in _targets(example))

    def unit_logits(self, output: Any, batch: Batch) -> Tensor:
        """The logits at the words' first tokens."""
        return at(output.logits, cast("Tensor", batch.units))

    def new_metrics(self) -> EntityMetrics:
        """Entity F1, accuracy and loss."""
        return EntityMetrics(self._scheme, self._num_windows)

    def probes(self, count: int) -> dict[str, Any]:
        """The first evaluation rows."""
        return {"text": [" ".join(row.words) for row in self._rows.evaluation.rows[:count]]}

    def _examples(self, part: Part[data.TaggedWords] | None) -> list[Example]:
        """The rows as examples. Words that the tokenizer makes nothing of are no units, and are counted."""
        if part is None:
            return []
        number_of = {tag: number for number, tag in enumerate(self.labels)}
        texts = [" ".join(row.words) for row in part.rows]
        examples: list[Example] = []
        for row, cut in zip(part.rows, windows(self.tokenizer, texts, None, self.max_length), strict=True):
            numbers = [UNLABELED] * len(row.words) if row.tags is None else [number_of[tag] for tag in row.tags]
            made = list(_examples(row.words, numbers, cut, self._num_rows))
            if not made:
                part.report.num_kept -= 1
                part.report.drop_unusable("of words that the tokenizer makes nothing of", row.place)
                continue
            num_units = sum(target != NO_UNIT for example in made for target in _targets(example))
            if num_units < len(row.words):
                part.report.note("with words that the tokenizer makes nothing of", row.place)
            if len(made) > 1:
                part.report.note(f"longer than {self.max_length} tokens, read in windows", row.place)
                self._num_windows[self._num_rows] = len(made)
            self._num_rows += 1
            examples += made
        check_usable(part.report, self._max_dropped, bool(examples))
        return examples


def _targets(example: Example) -> list[int]:
    return cast("list[int]", example.target)


def _examples(words: Sequence[str], numbers: Sequence[int], cut: Sequence[Window], row: int) -> Iterator[Example]:
    """An example a window that has a word's tag to predict."""
    targets = [[NO_UNIT] * len(window.input_ids) for window in cut]
    for word, (home, token) in _homes(words, cut).items():
        targets[home][token] = numbers[word]
    used = [(one, target) for one, target in zip(cut, targets, strict=True) if any(tag != NO_UNIT for tag in target)]
    for number, (window, target) in enumerate(used):
        yield Example(window.input_ids, window.token_type_ids, target, row, window=number)


def _homes(words: Sequence[str], cut: Sequence[Window]) -> dict[int, tuple[int, int]]:
    """For each word the window in which it is predicted, and the place in it of the word's first token."""
    spans = _spans(words)
    homes: dict[int, tuple[int, int]] = {}
    most: dict[int, int] = {}
    for number, window in enumerate(cut):
        length = len(window.input_ids)
        # Where the text itself begins or ends, nothing is missing.
        left = 0 if number else -length
        right = length - 1 if number < len(cut) - 1 else 2 * length
        for word, token in _first_tokens(spans, window):
            surroundings = min(token - left, right - token)
            if surroundings > most.get(word, -1):
                homes[word], most[word] = (number, token), surroundings
    return homes


def _spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where each word begins and ends in the text."""
    spans, start = [], 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


def _first_tokens(spans: Sequence[tuple[int, int]], window: Window) -> Iterator[tuple[int, int]]:
    """Each word that a window has a token of, and the number of the first of those tokens."""
    word, seen = -1, -1
    for token, ((start, end), side) in enumerate(zip(window.places, window.sides, strict=True)):
        if side is None or end <= start:
            continue
        if word < 0:
            word = bisect_right(spans, start, key=lambda span: span[1])
        while word < len(spans) and spans[word][1] <= start:
            word += 1
        # A token may begin with the space before its word, so it is its end that tells whether it reaches into it.
        if word < len(spans) and word != seen and spans[word][0] < end:
            yield word, token
            seen = word
