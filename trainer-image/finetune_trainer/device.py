"""Picks the device, the precision and the number of threads."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.training import Precision
from finetune_trainer.errors import TrainerError

CGROUP = Path("/sys/fs/cgroup")


def num_gpus() -> int:
    """How many GPUs PyTorch can use; it counts them also where the driver is too old for it."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pick_device(gpus: int, number: int = 0, has_gpus: bool = False) -> torch.device:
    """The GPU of that number if any is asked for and there is one, else the CPU.

    With `has_gpus` the node was given what is asked for, and holds it: raises TrainerError where PyTorch cannot use it.
    """
    found = num_gpus()
    if gpus and has_gpus and found <= number:
        raise too_few_gpus(gpus, found)
    return torch.device("cuda", number) if gpus and found else torch.device("cpu")


def too_few_gpus(asked: int, found: int) -> TrainerError:
    """The error for GPUs that PyTorch does not find, and what to do about it."""
    why = "see that the image fits the node's driver (nvidia-smi there)"
    if not torch.backends.cuda.is_built():
        why = f"use an image with PyTorch's CUDA build; in this one it is {torch.__version__}, for CPUs alone"
    return TrainerError(
        ExitCode.SPEC_INVALID,
        f"spec.resources.gpusPerNode is {asked}, but PyTorch finds {found} on this node",
        f"{why}, or use 0 to train on CPUs",
    )


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass.

    Auto is BF16 only on GPUs that compute in it: those before Ampere emulate it, and on most CPUs it is many times
    slower than FP32.
    """
    is_gpu = device.type == "cuda"
    if precision == Precision.BF16 and is_gpu and not torch.cuda.is_bf16_supported():
        raise TrainerError(
            ExitCode.SPEC_INVALID, "spec.training.precision: BF16 is not supported by this GPU", "use Auto or FP32"
        )
    wanted = precision == Precision.BF16
    if precision == Precision.AUTO and is_gpu:
        wanted = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def set_threads() -> int:
    """Use as many threads as the container may use cores, unless OMP_NUM_THREADS says; returns the number."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())
    return torch.get_num_threads()


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may use: its affinity, and the quota of its cgroup, which the host's count ignores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # cgroup v1
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        if quota_us > 0:
            cores = min(cores, max(1, math.ceil(quota_us / period_us)))
    return cores


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put saved generator states back."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
