"""How much memory training needs, by a formula, in bytes.

Legend: P parameters of the model, T trained ones, s tokens of a row, b rows, h hidden size, a attention heads.
"""

from __future__ import annotations

from finetune_trainer.auto.facts import Facts, Load
from finetune_trainer.losses import NUMBERS_AT_ONCE

_FLOAT = 4
_STATE = 12
"""Of each trained parameter in float32, its gradient and AdamW's two moments (Rajbhandari et al. 2020, section 3.1)."""
_TRAINING_LOGITS = 8
"""Of each logit, as computed, and its gradient."""
_TRAINING_LOGITS_AT_WORK = 12
"""Of each logit of a part that is worked on: as log-probability, and the gradients of both, in float32."""
_EVALUATION_LOGITS = 4
"""Of each logit, as computed."""
_LOGITS_AT_WORK = 8
"""Of each logit of a part that is worked on: as log-probability, once for the loss and once for the divergence."""


def full_tuning_bytes(facts: Facts) -> int:
    """What full tuning needs."""
    return _peak(facts, added=0, trained=facts.model.parameters)


def adapter_bytes(facts: Facts, parameters: int) -> int:
    """What adapters of so many parameters need. Activations are those of full tuning: gradients go as far down."""
    return _peak(facts, added=parameters, trained=parameters)


def evaluation_takes_more(facts: Facts) -> bool:
    """Whether an evaluation's batch takes more than a training step's."""
    return _evaluation_bytes(facts) > _training_bytes(facts)


def _peak(facts: Facts, added: int, trained: int) -> int:
    """Weights, gradients and moments, and the most that a training step or an evaluation adds to them."""
    is_cast = facts.device.activation_bytes < _FLOAT  # autocast keeps a copy of each weight
    weight = _FLOAT + is_cast * facts.device.activation_bytes
    kept = weight * (facts.model.parameters + added) + _STATE * trained
    return kept + max(_training_bytes(facts), _evaluation_bytes(facts))


def _training_bytes(facts: Facts) -> int:
    activations = facts.model.layers * _layer_bytes(facts, facts.training)
    logits = _logits(facts, facts.training)
    return activations + _TRAINING_LOGITS * logits + _TRAINING_LOGITS_AT_WORK * min(logits, NUMBERS_AT_ONCE)


def _evaluation_bytes(facts: Facts) -> int:
    logits = _logits(facts, facts.evaluation)
    at_work = _LOGITS_AT_WORK * min(logits, NUMBERS_AT_ONCE)
    return _layer_bytes(facts, facts.evaluation) + _EVALUATION_LOGITS * logits + at_work


def _layer_bytes(facts: Facts, load: Load) -> int:
    """A layer's activations: s b h (34 + 5 a s / h) in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2).

    The second term is of the attention weights, which fused attention never keeps.
    """
    model = facts.model
    attention = 5 * model.heads * load.tokens / model.hidden_size if facts.device.keeps_attention else 0.0
    in_16_bits = load.tokens * load.rows * model.hidden_size * (34 + attention)
    return round(in_16_bits * facts.device.activation_bytes / 2)


def _logits(facts: Facts, load: Load) -> int:
    return load.rows * load.units * facts.model.outputs
