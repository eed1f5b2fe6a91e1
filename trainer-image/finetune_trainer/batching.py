"""Cuts rows into batches: length-bucketed, seeded, resumable; padded only to the longest row of a micro-batch.

Legend of tensor shapes: B rows, L tokens, U units (supervised predictions), C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# With batches drawn from sorted pools of this many, 4 to 9 % of the tokens of usual texts are padding (random batches:
# a third and more), and batches stay random enough. Twice as many would halve it.
POOL_BATCHES = 32

NO_UNIT = -100
"""In the target of a token: nothing is predicted here."""
UNLABELED = -101
"""The target of a unit of which none is known: a teacher's answer is learnt there, or nothing."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenised row, or a window of one."""

    input_ids: list[int]
    token_type_ids: list[int] | None
    target: int | list[int] | tuple[int, int]
    """The class number; one a token; or the first and the last token of the answer."""
    row: int = -1
    """The number of the row it comes from. Windows of one row share it."""
    window: int = 0
    """Which of the row's windows, counted from 0."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors, padded on one side."""

    inputs: dict[str, Any]
    """What the model takes: input_ids [B, L] and what belongs to them, such as attention_mask [B, L]."""
    targets: Tensor
    """The units' classes [U]; UNLABELED where unknown."""
    num_tokens: int
    """Real tokens, without padding."""
    units: Tensor | None = None
    """Where the units are among the tokens, counted row by row [U], for tasks that predict tokens."""
    possible: Tensor | None = None
    """Which tokens may be the answer [B, L], for tasks that choose among them."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""

        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        inputs = {name: moved(value) for name, value in self.inputs.items()}
        return Batch(inputs, moved(self.targets), self.num_tokens, moved(self.units), moved(self.possible))


def places(chosen: Tensor) -> Tensor:
    """Where a mask on the CPU is true, counted row by row."""
    return chosen.flatten().nonzero().squeeze(1)


def at(values_BL: Tensor, places_U: Tensor) -> Tensor:
    """What is at some places [U, ...], counted row by row.

    A mask would give the same, but a GPU does not tell how large that is before all is done that it was asked for.
    """
    return values_BL.flatten(0, 1).index_select(0, places_U)


def pad(examples: Sequence[Example], pad_token_id: int, *, on_left: bool = False) -> dict[str, Tensor]:
    """The examples' inputs [B, L], padded to the longest of them."""
    longest = max(len(example.input_ids) for example in examples)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        padding = [[value] * (longest - len(row)) for row in rows]
        return torch.tensor([left + row if on_left else row + left for left, row in zip(padding, rows, strict=True)])

    inputs = {
        "input_ids": padded([example.input_ids for example in examples], pad_token_id),
        "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
    }
    token_types = [example.token_type_ids for example in examples if example.token_type_ids is not None]
    if token_types:
        inputs["token_type_ids"] = padded(token_types, 0)
    return inputs


def collate(examples: Sequence[Example], pad_token_id: int, *, on_left: bool = False) -> Batch:
    """Examples with one class each as a batch; its units are the rows."""
    targets = torch.tensor([example.target for example in examples])
    inputs = pad(examples, pad_token_id, on_left=on_left)
    return Batch(inputs, targets, sum(len(example.input_ids) for example in examples))


class BucketSampler:
    """Endless batches of row numbers: every epoch a new seeded order, rows of like length together.

    The order of an epoch follows from the seed and the epoch alone, so the position in it is all there is to save.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._batches = self._order(0)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(self._lengths) // self._batch_size)

    @property
    def epochs_done(self) -> float:
        """Passes over the rows so far."""
        return self._epoch + self._position / self.batches_per_epoch

    def next(self) -> list[int]:
        """The next batch of row numbers."""
        if self._position == len(self._batches):
            self._epoch, self._position = self._epoch + 1, 0
            self._batches = self._order(self._epoch)
        batch = self._batches[self._position]
        self._position += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        """The position, to save."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Return to a saved position."""
        self._epoch, self._position = state["epoch"], state["position"]
        self._batches = self._order(self._epoch)

    def _order(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool_size = POOL_BATCHES * self._batch_size
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), pool_size):
            pool = sorted(shuffled[start : start + pool_size], key=self._lengths.__getitem__)
            batches += [pool[i : i + self._batch_size] for i in range(0, len(pool), self._batch_size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def by_length(examples: Sequence[Example], batch_size: int) -> Iterator[list[Example]]:
    """All examples once, longest first, so that the batch that needs most memory comes first."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids), reverse=True)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]
