"""What a student minimises: the teacher's terms and its task's loss, each with its weight and its own name.

Legend of tensor shapes: B rows, L tokens, U units (supervised predictions), C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune_api.v1alpha1.strategy import (
    DistillationStrategy,
    FeatureDistillation,
    RelationDistillation,
    ResponseDistillation,
)
from finetune_trainer import losses
from finetune_trainer.batching import Batch, Example, places
from finetune_trainer.data.packing import filled_rows
from finetune_trainer.distillation import feature, relation, response
from finetune_trainer.distillation.attention import LayerAttention, recording
from finetune_trainer.distillation.cache import Answers, num_units
from finetune_trainer.distillation.teacher import Teacher
from finetune_trainer.objective import Forward
from finetune_trainer.tasks import Task

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one model shows of a batch."""

    logits_UC: Tensor
    hidden: Sequence[Tensor]
    """States [B, L, D]: of the embeddings, then of each layer; none unless wanted."""
    attention: dict[int, LayerAttention]


@dataclass(frozen=True, slots=True)
class Owned:
    """Which token of a batch belongs to which of its examples."""

    owner_BL: Tensor
    """The number of the example; -1 for padding."""
    places_T: Tensor
    """Where the tokens are that are no padding, counted row by row."""
    num_samples: int


@dataclass(frozen=True, slots=True)
class DistillationObjective:
    """The terms of one run."""

    spec: DistillationStrategy
    task: Task
    teacher: Teacher | Answers
    """Looks at each batch; or what it answered for all rows, when only its answers are asked for."""
    num_classes: int | None
    """Compare these many classes only: a vocabulary without the padding that one of the models has; None for all."""
    pairs: Sequence[Pair]
    """(student layer, teacher layer)."""
    projections: nn.ModuleDict
    """From the student's width to the teacher's, by student layer, where they differ."""
    autocast: Callable[[], AbstractContextManager[Any]]
    distillation_steps: int
    """After so many steps only the task's loss is left."""

    def terms(
        self, forward: Forward, batch: Batch, rows: Sequence[int], examples_of_step: Sequence[Example], step: int
    ) -> dict[str, Tensor]:
        """task, response, hidden, attention, distance, angle, layers, selfAttention: those that have a weight."""
        num_labelled = max(1, self.task.num_units(examples_of_step))
        if step >= self.distillation_steps:
            logits_UC = self.task.unit_logits(forward(**batch.inputs), batch)
            return {"task": losses.cross_entropy(logits_UC, batch.targets, num_labelled)}
        spec, student = self.spec, self._see_student(forward, batch)
        terms: dict[str, Tensor] = {}
        if spec.task_weight:
            terms["task"] = spec.task_weight * losses.cross_entropy(student.logits_UC, batch.targets, num_labelled)
        if isinstance(self.teacher, Answers):
            known = self.teacher.of(rows, student.logits_UC.shape[-1], student.logits_UC.device)
        else:
            teacher = self._see_teacher(self.teacher, batch)
            known = teacher.logits_UC
            owned = self._owned(batch, rows)
            tokens = sum(len(example.input_ids) for example in examples_of_step)
            if spec.feature:
                found = self._features(spec.feature, student, teacher, owned.places_T, tokens)
                terms |= _weighted(spec.feature.weight, found)
            if spec.relation:
                found = self._relations(spec.relation, student, teacher, owned, tokens)
                terms |= _weighted(spec.relation.weight, found)
        if spec.response:
            divergences_U = self._divergences(spec.response, student.logits_UC, known)
            terms["response"] = spec.response.weight * divergences_U.sum() / sum(map(num_units, examples_of_step))
        return terms

    def _see_student(self, forward: Forward, batch: Batch) -> Seen:
        states = {"output_hidden_states": True} if needs_states(self.spec) else {}
        with recording(frozenset(one for one, _ in self._recorded())) as record:
            output = forward(**batch.inputs, **states)
        logits_UC = self.task.unit_logits(output, batch)
        return Seen(logits_UC, output.hidden_states if states else (), record.layers)

    def _see_teacher(self, teacher: Teacher, batch: Batch) -> Seen:
        states = {"output_hidden_states": True} if needs_states(self.spec) else {}
        with recording(frozenset(other for _, other in self._recorded())) as record, self.autocast():
            output = teacher.output(batch, **states)
        logits_UC = teacher.unit_logits(output, batch)
        return Seen(logits_UC, output.hidden_states if states else (), record.layers)

    def _recorded(self) -> list[Pair]:
        """The layers whose attention is compared."""
        pairs = list(self.pairs) if self.spec.feature and self.spec.feature.attention else []
        return [*pairs, self.pairs[-1]] if self.spec.relation and self.spec.relation.self_attention else pairs

    def _divergences(self, spec: ResponseDistillation, logits_UC: Tensor, known: Tensor | response.TopLogits) -> Tensor:
        """Of each unit [U]."""
        logits_UC = logits_UC[:, : self.num_classes]
        if isinstance(known, Tensor) and spec.top_k is not None:
            known = response.top_logits(known, spec.top_k, spec.temperature)
        if isinstance(known, Tensor):
            return response.divergence(logits_UC, known, spec.divergence, spec.temperature)
        return response.divergence_of_top(logits_UC, known, spec.divergence, spec.temperature)

    def _features(
        self, spec: FeatureDistillation, student: Seen, teacher: Seen, places_T: Tensor, tokens: int
    ) -> dict[str, Tensor]:
        hidden = [
            feature.hidden_loss(
                self._projected(one, student.hidden[one + 1]), teacher.hidden[other + 1], places_T, spec.hidden, tokens
            )
            for one, other in self.pairs
        ]
        found = {"hidden": torch.stack(hidden).mean()}
        if spec.attention:
            attention = [
                feature.attention_loss(
                    student.attention[one].probabilities_BHQK,
                    teacher.attention[other].probabilities_BHQK,
                    places_T,
                    tokens,
                )
                for one, other in self.pairs
            ]
            found["attention"] = torch.stack(attention).mean()
        return found

    def _projected(self, layer: int, hidden_BLD: Tensor) -> Tensor:
        return self.projections[str(layer)](hidden_BLD.float()) if str(layer) in self.projections else hidden_BLD

    def _relations(
        self, spec: RelationDistillation, student: Seen, teacher: Seen, owned: Owned, tokens: int
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if spec.distance or spec.angle:
            pooled = [
                relation.pool(one.hidden[-1], owned.owner_BL, owned.places_T, owned.num_samples)
                for one in (student, teacher)
            ]
            if spec.distance:
                found["distance"] = spec.distance * relation.distance_loss(*pooled)
            if spec.angle:
                found["angle"] = spec.angle * relation.angle_loss(*pooled)
        if spec.layers:
            flows = [
                relation.flow_loss(
                    (student.hidden[before[0]], student.hidden[after[0]]),
                    (teacher.hidden[before[1]], teacher.hidden[after[1]]),
                    owned.owner_BL,
                    owned.places_T,
                    tokens,
                )
                for before, after in self._flows()
            ]
            found["layers"] = spec.layers * torch.stack(flows).mean()
        if spec.self_attention:
            found["selfAttention"] = spec.self_attention * self._self_attention(
                student, teacher, owned.places_T, tokens
            )
        return found

    def _flows(self) -> list[tuple[Pair, Pair]]:
        """Numbers of states that follow each other: embeddings, then the paired layers."""
        stops = [(0, 0), *((one + 1, other + 1) for one, other in self.pairs)]
        return list(itertools.pairwise(stops))

    def _self_attention(self, student: Seen, teacher: Seen, places_T: Tensor, tokens: int) -> Tensor:
        own, other = student.attention[self.pairs[-1][0]], teacher.attention[self.pairs[-1][1]]
        widths = [one.query_BHLD.shape[1] * one.query_BHLD.shape[3] for one in (own, other)]
        num_heads = relation.num_relation_heads(widths[0], widths[1], preferred=other.query_BHLD.shape[1])
        kinds = (
            ((own.query_BHLD, own.key_BHLD), (other.query_BHLD, other.key_BHLD)),
            ((own.value_BHLD, own.value_BHLD), (other.value_BHLD, other.value_BHLD)),
        )
        allowed_BQK = other.allowed_BQK
        losses_of_kinds = [
            relation.self_relation_loss(mine, theirs, allowed_BQK, places_T, num_heads, tokens)
            for mine, theirs in kinds
        ]
        return torch.stack(losses_of_kinds).sum()

    def _owned(self, batch: Batch, rows: Sequence[int]) -> Owned:
        shape, device = batch.inputs["input_ids"].shape, batch.inputs["input_ids"].device
        lengths = [len(self.task.train[row].input_ids) for row in rows]
        together = [[number] for number in range(len(rows))] if shape[0] == len(rows) else filled_rows(lengths)
        owners = [[number for number in row for _ in range(lengths[number])] for row in together]
        owner_BL = torch.tensor([row + [-1] * (shape[1] - len(row)) for row in owners])
        places_T = places(owner_BL >= 0)
        return Owned(owner_BL.to(device, non_blocking=True), places_T.to(device, non_blocking=True), len(rows))


def needs_states(spec: DistillationStrategy) -> bool:
    """Whether the models' states are compared."""
    relations = spec.relation
    between = relations is not None and (relations.distance or relations.angle or relations.layers)
    return spec.feature is not None or bool(between)


def _weighted(weight: float, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight * term for name, term in terms.items()}
