"""Starts a process for each GPU of a node, and ends with the code of the one that failed first for its own reason.

In place of torchrun, whose agent turns every exit code into 1: a cluster decides by the code whether to try again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Termination
from finetune_api.v1alpha1.scheduling import ResourcesSpec
from finetune_trainer.device import available_cores, num_gpus, too_few_gpus
from finetune_trainer.progress import read_termination
from finetune_trainer.rendezvous import Place, have_met, host_store
from finetune_trainer.stop import StopFlag

GRACE_SECONDS = 30.0
"""After the first failure; those that have lost a peer need no more to end by themselves."""
_POLL_SECONDS = 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class End:
    """How the training of this node ended."""

    code: int
    """The exit code; 128 and a signal's number where one killed the process."""
    termination: Termination | None
    """The last word, if the process could say one."""


def num_processes(resources: ResourcesSpec, has_gpus: bool = False) -> int:
    """How many processes train on this node: one for each GPU asked for. Raises TrainerError.

    With `has_gpus` the node was given what it asked for, and holds it whether PyTorch can use it or not. Otherwise a
    job of one node makes do with the GPUs there are, because its result does not depend on their number; the nodes of
    a larger job have to agree on it.
    """
    asked = resources.gpus_per_node
    if asked == 0:
        return 1
    found = num_gpus()
    if found < asked and (has_gpus or resources.nodes > 1):
        raise too_few_gpus(asked, found)
    return max(1, min(asked, found))


def launch(command: Sequence[str], node: Place, num_local: int, stop: StopFlag) -> End:
    """Run a command in so many processes on this node, until all have ended. Raises TrainerError.

    `node` is the place of the node among nodes. A stop is passed on to all.
    """
    is_alone = node.size == 1
    address, port = ("127.0.0.1", 0) if is_alone else (node.address, node.port)
    with contextlib.ExitStack() as held:
        words = [Path(held.enter_context(tempfile.TemporaryDirectory()), "word.json") for _ in range(num_local)]
        store = None  # lives as long as they do
        if node.rank == 0:
            store, port = host_store("127.0.0.1" if is_alone else "", port)
        children = []
        for local, word in enumerate(words):
            place = Place(node.rank * num_local + local, node.size * num_local, local, address, port)
            children.append(_start(command, place, num_local, word))
        ends = _wait_for_all(children, stop)
        number, code = _decisive(ends)
        end = End(code, read_termination(words[number]))
        all_lost = {code for _, code in ends} == {ExitCode.PEER_LOST}
        if all_lost and not stop.is_set and store is not None and (is_alone or not have_met(store)):
            return _counted(end)
        return end


def _counted(end: End) -> End:
    """The end of a node whose processes have all lost a peer, as a failed try: no other process's end will count.

    The first one counts a meeting that does not come about, but may have been ended here before it could say so.
    """
    code, last = ExitCode.NETWORK_UNAVAILABLE, end.termination
    hint = "see what each process says in the log; within a node, NCCL needs spec.resources.sharedMemory"
    told = {"exit_code": code, "reason": code.reason, "hint": hint}
    return End(code, last.model_copy(update=told) if last is not None else None)


def end_with_launcher() -> None:
    """End this process when the one that started it has ended, even if that was killed."""

    def watch() -> None:
        os.read(0, 1)  # not through sys.stdin: its lock, held to the end, would abort a process that is done
        os._exit(ExitCode.PEER_LOST)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _start(command: Sequence[str], place: Place, num_local: int, word: Path) -> subprocess.Popen[bytes]:
    cores = int(os.environ.get("OMP_NUM_THREADS") or available_cores())  # of the node, as everything that it is given
    environment = os.environ | place.environment()
    environment |= {"OMP_NUM_THREADS": str(max(1, cores // num_local)), "TERMINATION_MESSAGE_PATH": str(word)}
    # Its input is a pipe that nothing comes through; it ends with the launcher, whatever ended that.
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)


def _wait_for_all(children: Sequence[subprocess.Popen[bytes]], stop: StopFlag) -> list[tuple[int, int]]:
    """The number and the exit code of each process, in the order of their ends."""
    ends: dict[int, int] = {}
    was_stopped = False
    kill_at = math.inf
    while len(ends) < len(children):
        for number, child in enumerate(children):
            if number in ends or (code := child.poll()) is None:
                continue
            ends[number] = ExitCode.PEER_LOST if time.monotonic() > kill_at else code if code >= 0 else 128 - code
            if ends[number] not in (ExitCode.COMPLETE, ExitCode.STOPPED):
                kill_at = min(kill_at, time.monotonic() + GRACE_SECONDS)
        if stop.is_set and not was_stopped:
            was_stopped = True
            _signal(children, signal.SIGTERM)
        if time.monotonic() > kill_at:
            _signal(children, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)
    return list(ends.items())


def _signal(children: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for child in children:
        child.send_signal(number)  # nothing, when it has ended


def _decisive(ends: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The first that failed for its own reason; else the first that lost a peer; else that of the lowest number."""
    failed = [(number, code) for number, code in ends if code != ExitCode.COMPLETE]
    own = [(number, code) for number, code in failed if code != ExitCode.PEER_LOST]
    for number, code in own[:1]:
        if code > 128 and code != ExitCode.STOPPED:
            logger.error("process %s was killed by %s", number, signal.Signals(code - 128).name)
    return (own or failed or sorted(ends))[0]
