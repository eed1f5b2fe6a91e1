"""Records what attention layers compute, for any model that takes its attention function from transformers.

The recording function is eager attention, but what it hands out is the distribution before dropout: after it, rows are
no distributions any more, and what was dropped has a logarithm of minus infinity.

Legend of tensor shapes: B rows, L tokens (Q of them asking, K of them asked), H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

IMPLEMENTATION = "finetune-recorded"
# What some models add to the scores; without it they would not be the same models.
_UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")


class NotRecordable(Exception):
    """A model whose attention cannot be recorded; the message says why."""


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What one layer attended by."""

    probabilities_BHQK: Tensor
    query_BHLD: Tensor
    key_BHLD: Tensor
    """Keys that heads share are repeated for each, as attention itself does."""
    value_BHLD: Tensor
    allowed_BQK: Tensor
    """Which tokens a token may look at: padding, what comes later and other samples of a pack are masked."""


@dataclass(slots=True)
class Record:
    """The wanted layers of one forward pass."""

    wanted: frozenset[int]
    layers: dict[int, LayerAttention] = field(default_factory=dict)
    num_seen: int = 0


_current: ContextVar[Record | None] = ContextVar("attention_record", default=None)


@contextmanager
def recording(wanted: frozenset[int]) -> Iterator[Record]:
    """Record the attention of these layers (0 is the first) of the one forward pass made inside."""
    record = Record(wanted)
    token = _current.set(record)
    try:
        yield record
    finally:
        _current.reset(token)


def make_recordable(model: PreTrainedModel) -> None:
    """Let a model attend by the recording function. Raises NotRecordable."""
    AttentionInterface.register(IMPLEMENTATION, _recorded_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    model.set_attn_implementation(IMPLEMENTATION)
    if model.config._attn_implementation != IMPLEMENTATION:
        raise NotRecordable(f"{model.config.model_type} has an attention function of its own")


def _recorded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **terms: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention [B, L, H, D] and its distribution; signature and result as transformers has them."""
    if unknown := [name for name in _UNKNOWN_TERMS if terms.get(name) is not None]:
        raise NotRecordable(f"its attention has terms of its own ({', '.join(unknown)})")
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1, dtype=torch.float32)
    dropped = nn.functional.dropout(probabilities.to(value.dtype), p=dropout, training=module.training)
    record = _current.get()
    if record is not None:
        if record.num_seen in record.wanted:
            allowed = _allowed(attention_mask, scores)
            record.layers[record.num_seen] = LayerAttention(probabilities, query, key, value, allowed)
        record.num_seen += 1
    return (dropped @ value).transpose(1, 2).contiguous(), probabilities


def _allowed(attention_mask: Tensor | None, scores_BHQK: Tensor) -> Tensor:
    """The mask as booleans [B, Q, K]; without one everything is allowed."""
    shape = scores_BHQK[:, 0].shape
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=scores_BHQK.device)
    return (attention_mask[:, 0] >= 0).expand(shape)
