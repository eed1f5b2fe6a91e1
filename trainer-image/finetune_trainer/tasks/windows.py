"""Cuts texts into windows of tokens that overlap, with the place of each token in its text: nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

MAX_OVERLAP = 128
_TOKENISE_TEXTS = 1000


@dataclass(frozen=True, slots=True)
class Window:
    """A text's tokens, or a part of them, as a model takes them."""

    input_ids: list[int]
    token_type_ids: list[int] | None
    places: list[tuple[int, int]]
    """Where each token stands in its text: its first character, and the one after its last."""
    sides: list[int | None]
    """Of which text each token is, of a pair 0 or 1; None for a token of neither."""


def check_tells_places(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Raise TrainerError unless the tokenizer says where in the text its tokens are."""
    if not tokenizer.is_fast:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{directory}: the tokenizer does not tell where in a text its tokens are",
            "use a model with a tokenizer.json",
        )


def overlap(max_length: int) -> int:
    """How many tokens two windows share: a quarter, so that what is at one's edge has its surroundings in the other."""
    return min(MAX_OVERLAP, max_length // 4)


def windows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], seconds: Sequence[str] | None, max_length: int
) -> Iterator[list[Window]]:
    """Each text's windows, in the order of the text. Of a pair the first stays whole, and the second is cut.

    The first of a pair must leave room for more than `overlap(max_length)` tokens.
    """
    for start in range(0, len(texts), _TOKENISE_TEXTS):
        part = slice(start, start + _TOKENISE_TEXTS)
        encoded = tokenizer(
            list(texts[part]),
            list(seconds[part]) if seconds is not None else None,
            truncation="only_first" if seconds is None else "only_second",
            max_length=max_length,
            stride=overlap(max_length),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found: list[list[Window]] = [[] for _ in texts[part]]
        types = encoded.get("token_type_ids") or [None] * len(encoded["input_ids"])
        for number, text in enumerate(encoded["overflow_to_sample_mapping"]):
            places, sides = encoded["offset_mapping"][number], encoded.sequence_ids(number)
            found[text].append(Window(encoded["input_ids"][number], types[number], places, sides))
        for cut in found:
            # Tokenizers that truncate on the left begin with the last window.
            yield sorted(cut, key=_first_place)
    tokenizer.backend_tokenizer.no_truncation()  # or it is saved with the tokenizer


def _first_place(window: Window) -> int:
    """Where in its text a window begins."""
    tokens = zip(window.sides, window.places, strict=True)
    begins = [(side, place) for side, place in tokens if side is not None]
    cut = max((side for side, _ in begins), default=0)  # of a pair, the second is the one that is cut
    return min((start for side, (start, end) in begins if side == cut and end > start), default=0)
