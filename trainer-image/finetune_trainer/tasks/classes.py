"""Whose classes a classifier has: those of the data, or those of a pretrained output layer that knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from finetune_trainer.data.labels import plain
from finetune_trainer.heads import pretrained_output
from finetune_trainer.models import Loaded, load_model

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a job's model."""

    labels: tuple[str, ...]
    """Their names, by number."""
    replaced: frozenset[str] = frozenset()
    """The weights of a pretrained output layer for other classes, which are to be drawn anew."""
    report: tuple[str, ...] = ()
    """A line on what became of the pretrained output layer, if there is one."""

    def load_model(
        self, auto_class: Any, directory: Path, tokenizer: PreTrainedTokenizerBase, *, is_own: bool, **config: Any
    ) -> Loaded:
        """A pretrained model with an output for each class. Raises TrainerError.

        `is_own` says that it is the job's own model, whose output layer may be one to be replaced, and not another one.
        """
        return load_model(
            auto_class,
            directory,
            tokenizer,
            self.replaced if is_own else frozenset(),
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={label: number for number, label in enumerate(self.labels)},
            **config,
        )


def choose_classes(labels: Sequence[str], auto_class: Any, directory: Path) -> Classes:
    """Keep the pretrained output layer of a model, with its classes, if it has all of the data's labels."""
    output = pretrained_output(auto_class, directory)
    if output is None:
        return Classes(tuple(labels))
    kept = known_as(labels, output.labels)
    if kept is None:
        return Classes(
            tuple(labels),
            output.parameters,
            (
                f"the model's own output layer, for {listed(output.labels)}, is replaced by a new one: the labels of "
                f"the data are {listed(labels)}",
            ),
        )
    beyond = [label for label in kept if label not in labels]
    more = f", also those that the data does not have: {listed(beyond)}" if beyond else ""
    return Classes(kept, report=(f"the model's own output layer is kept, with its {len(kept)} classes{more}",))


def known_as(labels: Sequence[str], known: Sequence[str]) -> tuple[str, ...] | None:
    """A model's classes in its order, called as the data calls them; None unless it has all of the data's labels.

    Names may differ by case, or by a table's way of writing (1.0 for 1). Names that say nothing (LABEL_0, LABEL_1, ...)
    stand for the labels 0, 1, ...
    """
    if all(name == f"LABEL_{number}" for number, name in enumerate(known)) and len(labels) == len(known):
        numbers = tuple(map(str, range(len(known))))
        if set(labels) == set(numbers):
            return numbers
    return next(filter(None, (_matched(labels, known, key) for key in (str, str.casefold, plain))), None)


def _matched(labels: Sequence[str], known: Sequence[str], key: Callable[[str], str]) -> tuple[str, ...] | None:
    numbers = {key(name): number for number, name in enumerate(known)}
    names = {numbers.get(key(label)): label for label in labels}
    if None in names or len(names) < len(labels) or len(numbers) < len(known):
        return None
    return tuple(names.get(number, name) for number, name in enumerate(known))


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """The first of the names, and how many there are if there are more."""
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more
