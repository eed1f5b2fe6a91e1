"""Keeps a teacher's answers for all training examples, so that it answers once and then leaves the memory.

They lie in the work directory in parts, each whole or absent, bound to what they were computed from: a run that is
killed meanwhile goes on at the first part that is missing.

Legend of tensor shapes: U units (supervised predictions), C classes, K classes that are kept.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer import storage
from finetune_trainer.batching import NO_UNIT, Example
from finetune_trainer.distillation.response import TopLogits, top_logits
from finetune_trainer.distillation.teacher import Teacher
from finetune_trainer.out_of_memory import evaluating
from finetune_trainer.watchdog import beat

PART_ROWS = 4096
_FILE = "answers.safetensors"


@dataclass(frozen=True, slots=True)
class Asking:
    """How a teacher is asked."""

    batch_size: int
    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager[Any]]
    top_k: int | None = None
    """Keep the largest logits only, with the mass of the rest; None keeps all."""
    temperature: float = 1.0
    """At which that mass is summed."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The teacher's answers by row."""

    examples: Sequence[Example]
    parts: Sequence[dict[str, Tensor]]

    def of(self, rows: Sequence[int], num_classes: int, device: torch.device) -> Tensor | TopLogits:
        """Logits [U, C], or the largest of them, of a batch's units in their order."""
        if "rest" in self.parts[0]:
            values, classes, rest = (
                torch.cat([self._slice(name, row) for row in rows]).to(device, non_blocking=True)
                for name in ("values", "classes", "rest")
            )
            return TopLogits(values, classes.long(), rest)
        examples = [self.examples[row] for row in rows]
        own = [
            self._slice("logits", row).view(num_units(example), -1) for row, example in zip(rows, examples, strict=True)
        ]
        # A window's classes are its tokens; in this batch it may be padded to more of them.
        padded = [F.pad(logits_UC, (0, num_classes - logits_UC.shape[1]), value=-torch.inf) for logits_UC in own]
        return torch.cat(padded).to(device, non_blocking=True)

    def _slice(self, name: str, row: int) -> Tensor:
        part, place = self.parts[row // PART_ROWS], row % PART_ROWS
        start, end = part["starts"][place : place + 2].tolist()
        return part[name][start:end]


def num_units(example: Example) -> int:
    """How many predictions an example has, labelled or not."""
    if isinstance(example.target, int):
        return 1
    return 2 if isinstance(example.target, tuple) else sum(one != NO_UNIT for one in example.target)


def answers_of(teacher: Teacher, directory: Path, asking: Asking, note: Callable[[str], None]) -> Answers:
    """The teacher's answers for its task's training examples: read where they are kept, else computed and kept."""
    examples = teacher.task.train
    home = directory / _key(teacher, asking)
    for other in directory.glob("*"):
        if other != home:
            storage.remove(other)  # of another teacher, or of other data
    parts, num_computed = [], 0
    for start in range(0, len(examples), PART_ROWS):
        place, rows = home / f"part-{start // PART_ROWS:06d}", examples[start : start + PART_ROWS]
        if not _is_whole(place):
            tensors = _ask(teacher, rows, asking)
            storage.write_directory(place, functools.partial(_write, tensors))
            num_computed += len(rows)
        parts.append(load_file(place / _FILE))
    reused = len(examples) - num_computed
    earlier = f", {reused} of them from an earlier attempt" if reused else ""
    note(f"the teacher's answers for {len(examples)} rows are kept{earlier}; the teacher itself is no longer needed")
    return Answers(examples, parts)


def _ask(teacher: Teacher, examples: Sequence[Example], asking: Asking) -> dict[str, Tensor]:
    """The answers for one part, in the order of its rows."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].input_ids), reverse=True)
    found: dict[int, tuple[Tensor, ...]] = {}
    for start in range(0, len(order), asking.batch_size):
        rows = order[start : start + asking.batch_size]
        chosen = [examples[row] for row in rows]
        batch = teacher.task.collate(chosen).to(asking.device)
        with evaluating(asking.batch_size):
            with asking.autocast():
                output = teacher.output(batch)
            # Units come in the order of their examples, whatever the task.
            units_of_rows = teacher.unit_logits(output, batch).split([num_units(one) for one in chosen])
            kept = [_kept(units.float(), one, asking) for units, one in zip(units_of_rows, chosen, strict=True)]
            found |= zip(rows, _on_cpu(kept), strict=True)
        beat()
    names = ("logits",) if asking.top_k is None else ("values", "classes", "rest")
    answers = [found[row] for row in range(len(examples))]
    tensors = {name: torch.cat([one[number] for one in answers]) for number, name in enumerate(names)}
    sizes = torch.tensor([0, *(len(one[0]) for one in answers)])
    return {**tensors, "starts": sizes.cumsum(0)}


def _kept(units_UC: Tensor, example: Example, asking: Asking) -> tuple[Tensor, ...]:
    """What is kept of an example's answer."""
    if asking.top_k is not None:
        top = top_logits(units_UC, asking.top_k, asking.temperature)
        return top.values_UK, top.classes_UK.int(), top.rest_U
    if isinstance(example.target, tuple):
        units_UC = units_UC[:, : len(example.input_ids)]
    return (units_UC.flatten(),)


def _on_cpu(kept: Sequence[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """What is kept of a batch's examples, moved all at once: each move waits for the device."""
    moved = [torch.cat(parts).cpu().split([len(part) for part in parts]) for parts in zip(*kept, strict=True)]
    return zip(*moved, strict=True)


def _write(tensors: dict[str, Tensor], directory: Path) -> None:
    save_file(tensors, directory / _FILE)


def _is_whole(place: Path) -> bool:
    try:
        storage.check_directory(place)
    except storage.NotWhole:
        return False
    return True


def _key(teacher: Teacher, asking: Asking) -> str:
    """A digest over all that decides the answers."""
    how = (asking.precision, asking.device.type, asking.batch_size)
    digest = hashlib.sha256(f"{teacher.digest} {asking.top_k} {asking.temperature} {how}".encode())
    for example in teacher.task.train:
        digest.update(repr(example).encode())
    return digest.hexdigest()[:32]
