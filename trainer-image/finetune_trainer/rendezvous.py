"""Brings the processes of a job together: which of them this is, where they meet, and how long it waits for them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.scheduling import ResourcesSpec
from finetune_trainer import watchdog
from finetune_trainer.distributed import ManyProcesses, OneProcess, Ranks, library_errors, peer_lost
from finetune_trainer.errors import TrainerError
from finetune_trainer.stop import StopFlag

WAIT_SECONDS = 600.0
"""For pods that start later, and for an answer in the midst of training."""
_POLL_SECONDS = 0.5
_FIRST_NUMBERS = 250_000
"""Summed by all to begin with: 1 MB, because some networks lose large packets alone."""
_MET = "met"
"""The key of a store whose processes have begun: who comes now has been lost from among them."""
_LOCAL_RANK, _RANK, _WORLD_SIZE = "LOCAL_RANK", "RANK", "WORLD_SIZE"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among those of its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its number on its node, and so that of its GPU."""
    address: str = ""
    """Where they meet: a host that the first process, or its launcher, runs on."""
    port: int = 0
    has_launcher: bool = False
    """Whether a launcher started it; then that one keeps the meeting place."""

    def environment(self) -> dict[str, str]:
        """What a launcher tells the process."""
        return {
            _RANK: str(self.rank),
            _WORLD_SIZE: str(self.size),
            _LOCAL_RANK: str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


ALONE = Place()
"""A job that trains in one process."""


def find_place(resources: ResourcesSpec, environment: Mapping[str, str] = os.environ) -> Place:
    """The place that a launcher, or Kubernetes, gave to this process. Raises TrainerError.

    Without a launcher it stands for its node.
    """
    try:
        if _LOCAL_RANK in environment and _RANK in environment:
            rank, size, local = (int(environment[name]) for name in (_RANK, _WORLD_SIZE, _LOCAL_RANK))
            return Place(rank, size, local, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), True)
        if resources.nodes == 1:
            return ALONE
        rank, address = int(environment["JOB_COMPLETION_INDEX"]), environment["MASTER_ADDR"]
        return Place(rank, resources.nodes, 0, address, int(environment["MASTER_PORT"]))
    except KeyError as missing:
        raise TrainerError(
            ExitCode.SPEC_INVALID,
            f"spec.resources.nodes is {resources.nodes}: a job of several nodes needs a cluster ({missing} is not set)",
            "set it to 1 here; the result is the same, because training.batchSize is that of the whole job",
        ) from None


def join(place: Place, device: torch.device, stop: StopFlag) -> Ranks:
    """Meet the other processes, and see that all reach each other.

    Raises TrainerError: STOPPED when asked to stop, and PEER_LOST when others do not come or cannot be reached. The
    first raises NETWORK_UNAVAILABLE then, which counts as a try: a meeting that never comes about must have an end.
    """
    if place.size == 1:
        return OneProcess()
    store = _meet(place, stop)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a lost peer is an error here, not the process's abort
    with _meeting(place):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=PrefixStore("group", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=WAIT_SECONDS),
        )
        # What connects only when it is first used shall fail here, where it counts.
        for kind in ("cpu", "cuda") if on_gpu else ("cpu",):
            dist.all_reduce(torch.ones(_FIRST_NUMBERS, device=kind))
        if on_gpu:
            torch.cuda.synchronize()
        store.set(_MET, "")
    return ManyProcesses(WAIT_SECONDS)


def host_store(address: str, port: int) -> tuple[TCPStore, int]:
    """The meeting place on this machine and its port; port 0 takes any that is free. Raises TrainerError.

    At an empty address it is open to all that reach this machine.
    """
    is_dual = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_dual else socket.AF_INET
    try:
        listener = socket.create_server((address, port), family=family, dualstack_ipv6=is_dual)
    except OSError as error:
        raise TrainerError(
            ExitCode.NETWORK_UNAVAILABLE,
            f"port {port}, where the processes meet, cannot be opened: {error.strerror}",
            "end what listens there",
        ) from None
    port = listener.getsockname()[1]
    store = TCPStore(
        address or "localhost", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, port


def have_met(store: Store) -> bool:
    """Whether the processes of this meeting place have begun to train."""
    return store.check([_MET])


def leave() -> None:
    """Part from the other processes, where all have ended well; NCCL may wait for ever for one that is lost."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # the model is there
            dist.destroy_process_group()


def _meet(place: Place, stop: StopFlag) -> Store:
    """The store that all processes are at."""
    ends_at = time.monotonic() + WAIT_SECONDS
    names = [f"joined/{rank}" for rank in range(place.size)]
    if place.rank == 0 and not place.has_launcher:
        store, _ = host_store("", place.port)
    else:
        store = _connect(place, ends_at, stop)
    with _meeting(place):
        store.set(names[place.rank], "")
        while not store.check(names):
            if _is_over(ends_at, stop):
                what = f"of {place.size} processes, {_missing(store, names)} did not come"
                raise _not_met(place, f"{what} within {WAIT_SECONDS:g} seconds")
    return store


def _connect(place: Place, ends_at: float, stop: StopFlag) -> TCPStore:
    """The store, once it is there; not that of an attempt that is under way, which has lost the one before this.

    Such an attempt ends by itself, as the watchdog ends a first process that hangs. Where even that fails, nobody else
    is left to count it.
    """
    while True:
        is_there = False
        with contextlib.suppress(OSError):  # its name may not be known yet, nobody may listen yet
            # Asked this way, because the store's own attempts fill the log with the traces of C++.
            socket.create_connection((place.address, place.port), timeout=5).close()
            is_there = True
            with contextlib.suppress(dist.DistError):
                store = TCPStore(
                    place.address, place.port, wait_for_workers=False, timeout=timedelta(seconds=WAIT_SECONDS)
                )
                if not have_met(store):
                    return store
        if is_there and _is_over(ends_at + watchdog.LIMIT_SECONDS, stop):
            raise TrainerError(
                ExitCode.HANG,
                f"the first process, at {place.address}:{place.port}, neither ends nor begins anew with this one",
                "delete its pod; if its node does not answer, with --force",
            )
        if not is_there and _is_over(ends_at, stop):
            what = f"the first process cannot be reached at {place.address}:{place.port}"
            raise _not_met(place, f"{what} within {WAIT_SECONDS:g} seconds")


def _missing(store: Store, names: list[str]) -> str:
    return ", ".join(name.partition("/")[2] for name in names if not store.check([name]))


def _is_over(ends_at: float, stop: StopFlag) -> bool:
    """Wait a moment; whether that was the last. Raises TrainerError (STOPPED) when asked to stop."""
    if stop.is_set:
        raise TrainerError(ExitCode.STOPPED, "stopped while waiting for the other processes", "start the job again")
    if time.monotonic() > ends_at:
        return True
    time.sleep(_POLL_SECONDS)
    watchdog.beat()  # it ends by itself
    return False


def _meeting(place: Place) -> AbstractContextManager[None]:
    """Turn what the communication libraries raise into TrainerError."""
    return library_errors(lambda said: _not_met(place, f"the processes do not reach each other: {said}"))


def _not_met(place: Place, what: str) -> TrainerError:
    if place.rank > 0:
        return peer_lost(what)
    return TrainerError(
        ExitCode.NETWORK_UNAVAILABLE,
        what,
        "see that all pods start (a queue starts them together), and that NetworkPolicies let them reach each other on "
        "every port: gloo and NCCL choose theirs; within a node, NCCL needs spec.resources.sharedMemory",
    )
