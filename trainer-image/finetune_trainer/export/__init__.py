"""Writes the tuned model: whole or absent, reloaded in a fresh process and compared before success is declared."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer import hold, storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.export import reload
from finetune_trainer.strategies import Tuning
from finetune_trainer.tasks import Task

_TOLERANCE = 1e-5
NUM_PROBES = 16
_MEMORY_HINT = "raise spec.resources.memory: the exported model is loaded a second time, to be compared on the CPU"


def check_target(target: Path) -> None:
    """Raise TrainerError unless the output may be written: absent, empty, or an earlier output of ours."""
    target = target.resolve()  # a link to a directory stays, and what it points to is replaced
    if target.exists() and not target.is_dir():
        raise TrainerError(ExitCode.OUTPUT_REFUSED, f"output {target} is a file", "name a directory")
    if target.is_mount():
        raise TrainerError(
            ExitCode.OUTPUT_REFUSED,
            f"output {target} is the root of a volume, which cannot be replaced as a whole",
            "name a directory in it",
        )
    written, foreign = hold.writers_within(target, storage.foreign_files(target) if target.is_dir() else [])
    if written:
        raise TrainerError(
            ExitCode.WORK_DIRECTORY_BUSY,
            f"another job is at work that writes {target / written[0]}, in the output {target}",
            "name another directory",
        )
    if foreign:
        raise TrainerError(
            ExitCode.OUTPUT_REFUSED,
            f"output {target} holds files that were not written by a FineTuneJob: {', '.join(foreign[:3])}"
            + (", ..." if len(foreign) > 3 else ""),
            "name another directory, or empty it yourself",
        )
    _check_parent(target)


def _check_parent(target: Path) -> None:
    """Raise TrainerError unless a directory can be made there; better before hours of training than after."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # training may run, and by its end there may be space again
        code = error.errno or errno.EACCES
    else:
        if os.access(target.parent, os.W_OK | os.X_OK):
            return
        is_read_only = os.statvfs(target.parent).f_flag & os.ST_RDONLY
        code = errno.EROFS if is_read_only else errno.EACCES
    raise TrainerError(
        ExitCode.OUTPUT_REFUSED,
        f"output {target} cannot be made: {os.strerror(code)}",
        storage.how_to_allow(code),
    )


def export(
    target: Path, tuning: Tuning, task: Task, card: Callable[[float], str], downloads: Mapping[str, str] | None = None
) -> str:
    """Write the model to `target` and return its digest. Raises TrainerError when the reloaded one differs.

    They are compared by their logits for a few evaluation inputs; `card` gets the largest difference and returns the
    model card. `downloads` says where a base model lies that is named by its URI.
    """
    # Padded as in training, whatever side the tokenizer prefers, which is saved as the base model's.
    padding = {"padding": True, "padding_side": "right"}
    inputs = {"truncation": True, "max_length": task.max_length, **padding, **task.probes(NUM_PROBES)}

    def fill(directory: Path) -> None:
        _leave_device(tuning.model)
        tuning.save(directory)
        expected = _logits(tuning, task, inputs)
        try:
            difference = reload.compare(directory, tuning.loader, task.model_class, inputs, expected, downloads)
        except reload.NotLoaded as error:
            raise _mismatch(str(error)) from None
        except MemoryError as error:
            raise TrainerError(ExitCode.OUT_OF_MEMORY, str(error), _MEMORY_HINT) from None
        if not is_rounding(difference, expected):
            raise _mismatch(f"the exported model gives other logits (largest difference {difference:g})")
        (directory / "README.md").write_text(card(difference), encoding="utf-8")

    check_target(target)
    target = target.resolve()
    storage.write_directory(target, fill)
    return storage.digest(target)


def is_rounding(difference: float, logits: torch.Tensor) -> bool:
    """Whether logits that differ by so much from these are those of the same model."""
    return difference <= _TOLERANCE * max(1.0, logits.abs().max().item())


def _mismatch(message: str) -> TrainerError:
    return TrainerError(
        ExitCode.EXPORT_MISMATCH,
        message,
        "this is a defect; the last checkpoint is kept, please report it with the log",
    )


def _leave_device(model: torch.nn.Module) -> None:
    """Move a trained model to the CPU, and let go of what trained it, such as the optimizer's moments.

    Before it is saved: P-tuning's prompt is computed then, and the expected logits are those of the CPU's.
    """
    model.eval().to("cpu")
    gc.collect()
    torch.cuda.empty_cache()


@torch.no_grad()
def _logits(tuning: Tuning, task: Task, inputs: dict[str, Any]) -> torch.Tensor:
    """The trained model's logits, on the CPU in float32 as the fresh process computes them."""
    return reload.logits_of(tuning.model(**task.tokenizer(**inputs, return_tensors="pt")))
