"""The random numbers of training: others in every process, saved for all of them, put back exactly."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from finetune_trainer import device as devices
from finetune_trainer.distributed import Ranks


def seed(ranks: Ranks, number: int, step: int = 0) -> None:
    """Start the generators that dropout draws from. The first process's are those of a job that trains alone."""
    if ranks.rank or step:
        # A digest, because a spec may give any 32 bits, and the CPU's generator looks at no others.
        digest = hashlib.sha256(f"{number}/{ranks.rank}/{step}".encode()).digest()
        number = int.from_bytes(digest[:4])
    torch.manual_seed(number)


def states(ranks: Ranks, device: torch.device) -> dict[str, Tensor]:
    """The generators' states in all processes, by device; with the rank after it where that is not the first."""
    found: dict[str, Tensor] = {}
    for name, state in devices.random_states(device).items():
        for rank, data in enumerate(ranks.exchange(state.numpy().tobytes())):
            found[_name(name, rank)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return found


def restore(ranks: Ranks, device: torch.device, saved: dict[str, Tensor], number: int, step: int) -> bool:
    """Put saved states back; whether they are of as many processes as now. One without a state is seeded anew."""
    num_saved = sum(name.partition("/")[0] == "cpu" for name in saved)
    own = {name: saved[_name(name, ranks.rank)] for name in ("cpu", "cuda") if _name(name, ranks.rank) in saved}
    if own:
        devices.set_random_states(own, device)
    else:
        seed(ranks, number, step)
    return num_saved == ranks.size


def _name(device: str, rank: int) -> str:
    return f"{device}/{rank}" if rank else device
