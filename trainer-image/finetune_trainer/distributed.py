"""The processes of a job that train together: data parallel, each with the whole model and a share of every batch.

Gradients are summed over the processes, not averaged: every part of the loss is divided by the units of the whole batch
already. So the loss curve does not depend on how many processes there are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from finetune_api.exit_codes import ExitCode
from finetune_trainer import watchdog
from finetune_trainer.errors import TrainerError
from finetune_trainer.out_of_memory import is_out_of_memory
from finetune_trainer.stop import StopFlag

BEAT_SECONDS = 1.0
_BUCKET_NUMBERS = 25_000_000
"""Gradients that are summed at once: 100 MB."""
_MOST_SAID = 600
_WORDS_OF_CUDA = ("CUDA error", "CUDA driver error", "unhandled cuda error", "Cuda failure")

T = TypeVar("T")


class Ranks(Protocol):
    """The processes of a job as one of them sees them. All of them make the same calls in the same order."""

    rank: int
    """This process's number. The first, 0, is the only one that writes."""
    size: int
    """How many there are."""
    patience_seconds: float | None
    """How long the others wait for this one's answer; None when nobody waits."""

    def exchange(self, data: bytes) -> list[bytes]:
        """What every process gives, by rank. Raises TrainerError (PEER_LOST), as all that follow do."""

    def attend(self, work: Callable[[], T], stop: StopFlag) -> T:
        """Do work of any length and wait until all have done theirs; returns the own result.

        Meanwhile the processes show each other that they are alive, and a stop that one is asked for reaches all. When
        the work of one raises a TrainerError that none would be spared, all raise it. Work must not call Ranks itself.
        """

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Make every gradient the sum over all processes; a parameter without one anywhere stays without."""

    def share_weights(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Make parameters what they are in the first process."""


class OneProcess:
    """A job that trains alone."""

    rank = 0
    size = 1
    patience_seconds: float | None = None

    def exchange(self, data: bytes) -> list[bytes]:
        return [data]

    def attend(self, work: Callable[[], T], stop: StopFlag) -> T:
        return work()

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        pass

    def share_weights(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        pass


class ManyProcesses:
    """The processes of torch's default process group. Messages go by gloo, weights and gradients too, or by NCCL."""

    def __init__(self, patience_seconds: float) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.patience_seconds: float | None = patience_seconds

    def exchange(self, data: bytes) -> list[bytes]:
        own = torch.tensor([len(data)])
        sizes = [torch.empty_like(own) for _ in range(self.size)]
        with peer_errors():
            dist.all_gather(sizes, own)
        lengths = [int(size) for size in sizes]
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with peer_errors():
            dist.all_gather(parts, padded)
        return [part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]

    def attend(self, work: Callable[[], T], stop: StopFlag) -> T:
        beats = _Beats(self, stop)
        with watchdog.doing(within=watchdog.LIMIT_SECONDS), beats:
            result = work()
        beats.check()
        return result

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        # Which have one anywhere: a process without rows has none at all, but a layer that is unused has none in any.
        of_ranks = gather(self, [int(parameter.grad is not None) for parameter in parameters])
        used = [one for one, *has in zip(parameters, *of_ranks, strict=True) if any(has)]
        for bucket in _buckets(used):
            pieces = [torch.zeros_like(one) if one.grad is None else one.grad for one in bucket]
            flat = torch.cat([piece.flatten() for piece in pieces])
            with peer_errors():
                dist.all_reduce(flat)
            for one, summed in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                if one.grad is None:
                    one.grad = torch.empty_like(one)
                one.grad.copy_(summed.view(one.shape))  # laid out like the parameter, as fused optimizers want it

    @torch.no_grad()
    def share_weights(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            weights = parameter.detach().contiguous()
            with peer_errors():
                dist.broadcast(weights, 0)
            parameter.copy_(weights)


class _Beats:
    """Exchanges signs of life from a thread of its own while the main one works."""

    def __init__(self, ranks: ManyProcesses, stop: StopFlag) -> None:
        self._ranks = ranks
        self._stop = stop
        self._finished = threading.Event()
        self._own: dict[str, Any] = {}
        self._last: list[dict[str, Any]] = []
        self._lost: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="signs-of-life", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        # The last one, and as a whole: the thread may be sending it at this moment.
        self._own = {"done": True} if error is None else {"error": _told(error)}
        self._finished.set()
        self._thread.join()

    def check(self) -> None:
        """Raise TrainerError when another process is lost, or has failed."""
        if self._lost is not None:
            raise self._lost
        for rank, status in enumerate(self._last):
            if (error := status.get("error")) is not None:
                raise _shared(rank, **error)

    def _run(self) -> None:
        try:
            while True:
                self._finished.wait(BEAT_SECONDS)
                self._last = gather(self._ranks, {"stop": self._stop.is_set, **self._own})
                if self._own:  # to wait for others that live is no silence
                    watchdog.beat()
                if any(status["stop"] for status in self._last):
                    self._stop.is_set = True
                if any("error" in status for status in self._last) or all("done" in status for status in self._last):
                    break
        except Exception as error:  # a lost peer, or that this process has no memory left
            self._lost = error
        if not self._finished.is_set():  # what the others will never hear of should end soon
            self._stop.is_set = True


def _told(error: BaseException) -> dict[str, Any]:
    """An error for the other processes; a defect or a lack of memory may be this one's alone."""
    if isinstance(error, TrainerError):
        return {"code": int(error.code), "message": error.message, "hint": error.hint}
    return {"code": int(ExitCode.INTERNAL_ERROR), "message": type(error).__name__, "hint": ""}


def _shared(rank: int, code: int, message: str, hint: str) -> TrainerError:
    """Another process's error as this one's: the same where it would fail for all, else the loss of a peer."""
    if ExitCode(code).permanent:
        return TrainerError(ExitCode(code), message, hint)
    return peer_lost(f"process {rank} failed: {message}")


def peer_lost(what: str) -> TrainerError:
    """The error for another process that ended or does not answer."""
    return TrainerError(ExitCode.PEER_LOST, what, "the process that failed first tells why; this one is started again")


@contextmanager
def peer_errors() -> Iterator[None]:
    """Turn what the communication libraries raise into TrainerError (PEER_LOST).

    They have time limits of their own, so who waits in them is not the one that hangs.
    """
    with (
        library_errors(lambda said: peer_lost(f"another process of the job is lost: {said}")),
        watchdog.doing("waiting for the other processes", within=watchdog.LIMIT_SECONDS),
    ):
        yield


@contextmanager
def library_errors(told: Callable[[str], TrainerError]) -> Iterator[None]:
    """Raise what is made of what a communication library says, but for its trace of C++.

    A failure of the own GPU comes out there too, and stays what it is: the loss of a peer is counted by nobody here.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's have no type of their own
        if _is_of_own_gpu(error):
            raise
        raise told(" ".join(str(error).partition("\nException raised from ")[0].split())[:_MOST_SAID]) from None


def _is_of_own_gpu(error: RuntimeError) -> bool:
    if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
        return True
    return any(words in str(error) for words in _WORDS_OF_CUDA)


def gather(ranks: Ranks, value: Any) -> list[Any]:
    """What every process says, by rank; plain JSON, NaN and infinity included."""
    return [json.loads(said) for said in ranks.exchange(json.dumps(value).encode())]


def agree_on_any(ranks: Ranks, flag: bool) -> bool:
    """Whether it is so in any process."""
    return any(gather(ranks, flag))


def sum_by_name(ranks: Ranks, values: dict[str, float]) -> dict[str, float]:
    """The sums over all processes, the same bits in each; a name may be missing in some."""
    sums: dict[str, float] = {}
    for said in gather(ranks, values):
        for name, value in said.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def only_first(ranks: Ranks, work: Callable[[], T], stop: StopFlag) -> T | None:
    """Do work in the first process alone; the others wait for it, and get None."""
    return ranks.attend(work if ranks.rank == 0 else _nothing, stop)


def first(ranks: Ranks, work: Callable[[], T], stop: StopFlag) -> T:
    """Do work in the first process alone; all get its result, which is plain JSON."""
    result: T = gather(ranks, only_first(ranks, work, stop))[0]
    return result


def first_before_others(ranks: Ranks, work: Callable[[], T], stop: StopFlag) -> T:
    """Do work in the first process and then in the others, which find what it has written."""
    if ranks.rank == 0:
        result = ranks.attend(work, stop)
        ranks.attend(_nothing, stop)
        return result
    ranks.attend(_nothing, stop)
    return ranks.attend(work, stop)


def _nothing() -> None:
    """The work of those that wait."""


def deal(ranks: Ranks, rows: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The process's own share of a batch: about as many rows as any other's, and as many tokens.

    The longest row goes to the first process, the next to the second, and at the last one the order turns round.
    """
    if ranks.size == 1:
        return list(rows)
    ordered = sorted(rows, key=lambda row: -lengths[row])
    turns = (2 * ranks.size, ranks.rank, 2 * ranks.size - 1 - ranks.rank)
    return [row for place, row in enumerate(ordered) if place % turns[0] in turns[1:]]


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """The parameters in their order, in groups of not many more numbers than a bucket holds."""
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        bucket.append(parameter)
        if sum(map(Tensor.numel, bucket)) >= _BUCKET_NUMBERS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
