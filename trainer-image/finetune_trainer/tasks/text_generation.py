"""Text generation: a text, a completion of a prompt, or an assistant's turns of a chat, token by token."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer.batching import NO_UNIT, UNLABELED, Batch, Example, at
from finetune_trainer.data import text_generation as data
from finetune_trainer.data.chat_template import Unlearnable
from finetune_trainer.data.generation_rows import Chat, GenerationRow, Instruction, PlainText
from finetune_trainer.data.learnt_tokens import Encoder, Tokens
from finetune_trainer.data.packing import can_pack, can_select, collate_tokens, targets_of
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.rows import Part, Rows
from finetune_trainer.errors import TrainerError
from finetune_trainer.model_checks import check_directory
from finetune_trainer.models import Loaded, load_model, load_tokenizer
from finetune_trainer.perplexity import PerplexityMetrics
from finetune_trainer.tasks.generation_settings import stop_at
from finetune_trainer.tasks.limits import check_vocabulary, max_length

DEFAULT_MAX_LENGTH = 512
# A model's logits are as wide as its vocabulary: a few short inputs show a difference as well as many.
_NUM_PROBES = 4
_PROBE_LENGTH = 64

logger = logging.getLogger(__name__)


class TextGeneration:
    """The rows of a job as examples, and the model that writes them. A unit is a learnt token.

    Its logits are those at the token before it, and there the example's target stands.
    """

    model_class = "AutoModelForCausalLM"
    labels: Sequence[str] = ()
    baseline: float | None = None

    def __init__(
        self, run: Run, rows: Rows[GenerationRow], directory: Path, tokenizer: PreTrainedTokenizerBase, length: int
    ):
        self._rows = rows
        self._directory = directory
        self._max_dropped_fraction = run.spec.data.max_dropped_fraction
        self.tokenizer = tokenizer
        self.max_length = length
        self._encoder = Encoder(tokenizer, run.first_started_at)
        self.train: Sequence[Example] = [
            *self._examples(rows.train), *self._examples(rows.replay), *self._examples(rows.unlabeled, False)
        ]  # fmt: skip
        self.evaluation: Sequence[Example] = self._examples(rows.evaluation)
        self.retention: Sequence[Example] = self._examples(rows.retention)
        self.data_report: Sequence[str] = [*map(str, rows.reports()), *self._template_report()]
        strategy = run.spec.strategy
        # A soft prompt stands before each example, so each needs its row and all of its positions. Distillation
        # compares hidden states and attention, which are not told apart in a shared row.
        self._may_pack = strategy.prompt_tuning is None and strategy.distillation is None
        self._may_select = strategy.prompt_tuning is None
        self._packs = self._selects = False

    @classmethod
    def read(cls, run: Run, directory: Path) -> TextGeneration:
        """Read and tokenise a run's data. The model directory is checked first, because that takes no time."""
        check_directory(directory)
        tokenizer = load_tokenizer(directory)
        length = max_length(run, directory, tokenizer, DEFAULT_MAX_LENGTH)
        return cls(run, data.load(run), directory, tokenizer, length)

    def load_model(self, directory: Path | None = None) -> Loaded:
        """A pretrained language model; tries how batches may be made for it."""
        loaded = load_model(AutoModelForCausalLM, directory or self._directory, self.tokenizer)
        check_vocabulary(loaded, directory or self._directory, (*self.train, *self.evaluation, *self.retention))
        is_first = directory is None
        if is_first:  # a teacher's stays with it
            stop_at(loaded.model.generation_config, self._encoder.end_ids, self._directory)
        was_training = loaded.model.training
        loaded.model.eval()
        # A teacher sees the same batches, so it has a say too.
        self._packs = self._may_pack and (is_first or self._packs) and can_pack(loaded.model)
        self._selects = self._may_select and (is_first or self._selects) and can_select(loaded.model)
        loaded.model.train(was_training)
        if self._may_pack and not self._packs:
            kind = type(loaded.model).__name__
            logger.info("%s cannot tell apart examples that share a row: each gets one of its own, padded", kind)
        return loaded

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors; targets are token numbers [U]."""
        return collate_tokens(examples, self.tokenizer.pad_token_id, packs=self._packs, selects=self._selects)

    def num_units(self, examples: Sequence[Example]) -> int:
        """The learnt tokens."""
        return sum(token >= 0 for example in examples for token in targets_of(example))

    def unit_logits(self, output: Any, batch: Batch) -> Tensor:
        """The logits at the tokens before the learnt ones."""
        logits = output.logits
        return logits if logits.ndim == 2 else at(logits, cast("Tensor", batch.units))

    def new_metrics(self) -> PerplexityMetrics:
        """Perplexity and loss."""
        return PerplexityMetrics()

    def probes(self, count: int) -> dict[str, Any]:
        """The beginnings of the first evaluation rows."""
        examples = self.evaluation[: min(count, _NUM_PROBES)]
        texts = [self.tokenizer.decode(example.input_ids[:_PROBE_LENGTH]) for example in examples]
        return {"text": texts, "max_length": min(self.max_length, _PROBE_LENGTH)}

    def _examples(self, part: Part[GenerationRow] | None, is_labelled: bool = True) -> list[Example]:
        """The rows as examples; those that are truncated, or left with nothing to learn, are counted."""
        if part is None:
            return []
        examples: list[Example] = []
        for number, row in enumerate(part.rows):
            try:
                tokens = self._encoder.encode(row, part.report.source, is_labelled)
                pieces = self._pieces(tokens, row, part.report)
                examples += [_example(piece, self.max_length, is_labelled, number) for piece in pieces]
            except Unlearnable as reason:
                part.report.drop_unusable(str(reason), row.place)
                part.report.num_kept -= 1
            else:
                part.report.num_truncated += len(pieces[0].ids) > self.max_length
                if self._leaves_tools_out(row):
                    part.report.note("with tools, which the chat template does not write", row.place)
        self._check_share(part, bool(examples))
        return examples

    def _pieces(self, tokens: Tokens, row: GenerationRow, report: DataReport) -> list[Tokens]:
        """Plain text that is too long in pieces, each token learnt once; other rows whole, to be truncated."""
        ids, learnt, length = tokens.ids, tokens.learnt, self.max_length
        if len(ids) <= length or not isinstance(row, PlainText):
            return [tokens]
        report.note("longer than maxLength, in pieces", row.place)
        # The last token of a piece is the first of the next, or that one's first would never be learnt.
        starts = range(0, len(ids) - 1, length - 1)
        return [Tokens(ids[start : start + length], learnt[start : start + length]) for start in starts]

    def _leaves_tools_out(self, row: GenerationRow) -> bool:
        if not isinstance(row, Chat) or row.tools is None:
            return False
        return not self._encoder.template.writes(row.messages, row.tools)

    def _template_report(self) -> list[str]:
        """Which template wrote the chats: with another one the model would read what it never saw."""
        template, kinds = self._encoder.template, {type(row) for row in self._rows.train.rows}
        if template.source() is None and Instruction in kinds:
            return ["the tokenizer has no chat template: instructions are put as in Alpaca's prompts"]
        if kinds.isdisjoint((Chat, Instruction)):
            return []
        digest = hashlib.sha256((template.source() or "").encode()).hexdigest()
        line = f"chat template: sha256 {digest[:16]}"
        if template.asked_for:
            line += f"; it asks for the date, and is told that of the job's first start: {min(template.asked_for)}"
        return [line]

    def _check_share(self, part: Part[GenerationRow], any_left: bool) -> None:
        """Raise TrainerError when too many rows turned out unusable once they were tokens."""
        report, limit = part.report, self._max_dropped_fraction
        if any_left and report.unusable_fraction <= limit:
            return
        share = f"{report.unusable_fraction:.1%} of the rows are" if any_left else "all rows are"
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{report}; {share} unusable, such as {part.rows[0].place}: {part.rows[0].key()[:200]!r}",
            f"raise data.maxLength (now {self.max_length}), mend the rows"
            + (f", or raise data.maxDroppedFraction (now {limit:g})" if any_left else ""),
        )


def _example(tokens: Tokens, max_length: int, is_labelled: bool, row: int) -> Example:
    """What is learnt within the longest input. Raises Unlearnable when that is nothing."""
    ids = tokens.ids[:max_length]
    if is_labelled:
        target = [token if one else NO_UNIT for token, one in zip(ids[1:], tokens.learnt[1:], strict=False)]
        target.append(NO_UNIT)
        if all(one == NO_UNIT for one in target):
            is_cut = any(tokens.learnt[max_length:])
            raise Unlearnable("with nothing to learn" + (f" within maxLength ({max_length} tokens)" if is_cut else ""))
    else:  # what comes after the last token is not known, but a teacher has an opinion
        target = [UNLABELED] * len(ids)
    return Example(ids, None, target, row=row)
