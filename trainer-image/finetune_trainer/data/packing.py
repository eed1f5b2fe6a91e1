"""Puts several examples into one row of a batch, each as if it were alone there.

Their positions restart at 0, and by that transformers' attention masks tell them apart: no token sees another example.
What is learnt, and what it costs, is the same as with an example a row, less the padding.

Legend of tensor shapes: R rows, L tokens, U units (learnt tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from finetune_trainer.batching import NO_UNIT, Batch, Example, at, pad, places

_TOLERANCE = 1e-4
_LENGTHS = (7, 5, 4)


def collate_tokens(examples: Sequence[Example], pad_token_id: int, *, packs: bool, selects: bool) -> Batch:
    """Examples with a target a token as a batch; its units are in the order of the examples.

    `packs` lets examples share rows; `selects` asks the model for the logits of the units alone.
    """
    rows = filled_rows([len(example.input_ids) for example in examples]) if packs else []
    inputs: dict[str, Any]
    if len(rows) in (0, len(examples)):
        rows, inputs = [[number] for number in range(len(examples))], pad(examples, pad_token_id)
    else:
        inputs = {
            "input_ids": _joined([[examples[number].input_ids for number in row] for row in rows], pad_token_id),
            "position_ids": _positions([[len(examples[number].input_ids) for number in row] for row in rows]),
            "use_cache": False,  # transformers looks for restarting positions only where nothing is cached
        }
    targets_RL = _joined([[targets_of(examples[number]) for number in row] for row in rows], NO_UNIT)
    is_unit_RL = targets_RL != NO_UNIT
    if selects:
        inputs["logits_to_keep"] = is_unit_RL
    units_U = places(is_unit_RL)
    return Batch(inputs, at(targets_RL, units_U), sum(len(example.input_ids) for example in examples), units_U)


def filled_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Example numbers in rows, in their order; a row is as long as the longest example, so none costs more."""
    capacity = max(lengths)
    rows: list[list[int]] = []
    room = 0
    for number, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = capacity
        rows[-1].append(number)
        room -= length
    return rows


@torch.no_grad()
def can_pack(model: PreTrainedModel) -> bool:
    """Whether a model gives examples in one row the logits that it gives them alone. Tried, not looked up."""
    ids = _sample_ids(model)
    alone = [model(input_ids=part[None]).logits[0] for part in ids]
    positions = _positions([[len(part) for part in ids]])
    try:
        together = model(
            input_ids=torch.cat(ids)[None], position_ids=positions.to(model.device), use_cache=False
        ).logits[0]
    except (TypeError, ValueError, RuntimeError):
        return False
    return torch.allclose(together, torch.cat(alone), rtol=0, atol=_TOLERANCE * max(1.0, together.abs().max().item()))


@torch.no_grad()
def can_select(model: PreTrainedModel) -> bool:
    """Whether a model makes logits at chosen positions alone when it is asked to."""
    ids = torch.stack([part[:4] for part in _sample_ids(model)])
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[0, 1] = chosen[1, 2] = chosen[1, 3] = True
    everywhere = model(input_ids=ids).logits
    try:
        found = model(input_ids=ids, logits_to_keep=chosen).logits
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    wanted = everywhere[chosen]
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0, atol=_TOLERANCE)


def _sample_ids(model: PreTrainedModel) -> list[Tensor]:
    """A few short examples for trying a model."""
    numbers = torch.arange(sum(_LENGTHS), device=model.device)
    return list((numbers * 7919 % model.get_input_embeddings().num_embeddings).split(_LENGTHS))


def targets_of(example: Example) -> list[int]:
    """An example's targets, one a token."""
    return cast("list[int]", example.target)


def _positions(rows: Sequence[Sequence[int]]) -> Tensor:
    """Positions [R, L] of rows of examples of these lengths; padding counts from 0 too, as an example of its own."""
    longest = max(map(sum, rows))
    return torch.tensor([[one for length in (*row, longest - sum(row)) for one in range(length)] for row in rows])


def _joined(rows: Sequence[Sequence[list[int]]], padding: int) -> Tensor:
    """Rows of lists as one tensor [R, L]."""
    longest = max(sum(map(len, row)) for row in rows)
    return torch.tensor(
        [[one for part in row for one in part] + [padding] * (longest - sum(map(len, row))) for row in rows]
    )
