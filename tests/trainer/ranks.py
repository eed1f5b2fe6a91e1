"""Runs a job of several nodes: a real process for each, on CPUs, as the pods of an Indexed Job are started."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from finetune_api.run import Run, Termination
from trainer import processes
from trainer.processes import Fault, exit_code, start_trainer
from trainer.runs import events

WRITES = [
    "finetune_trainer.storage:write_directory",
    "finetune_trainer.storage:tidy",
    "finetune_trainer.storage:remove",
    "finetune_trainer.run:only_trainer_in",
    "finetune_trainer.run:only_writer_of",
    "finetune_trainer.run:check_target",
    "finetune_trainer.run:write_token",
]
"""Functions that change what is on the volume."""
NO_FAULTS: Sequence[Fault] = ()


def on_nodes(run: Run, num_nodes: int) -> Run:
    """The run on so many nodes, whose output and work lie on a volume that all of them mount."""
    volume = Path(run.manifest_dir, "volume")
    resources = run.spec.resources.model_copy(update={"nodes": num_nodes, "gpus_per_node": 0})
    output = run.spec.output.model_copy(update={"uri": "pvc://models/out"})
    spec = run.spec.model_copy(update={"resources": resources, "output": output})
    return run.model_copy(update={"spec": spec, "volumes": {"models": str(volume)}, "work_dir": str(volume / "work")})


def run_ranks(run: Run, *faults: Sequence[Fault]) -> list[int]:
    """The exit codes of all nodes' processes, by rank; `faults` are those of each."""
    num_nodes = run.spec.resources.nodes
    runs = [run] * num_nodes
    return run_each(runs, *faults)


def run_each(runs: Sequence[Run], *faults: Sequence[Fault]) -> list[int]:
    """The same, where the nodes do not have the same run."""
    return [exit_code(child) for child in start_each(runs, *faults)]


def start_each(runs: Sequence[Run], *faults: Sequence[Fault]) -> list[ForkServerProcess]:
    """Start the processes of all nodes."""
    port = free_port()
    faults = (*faults, *[NO_FAULTS] * (len(runs) - len(faults)))
    return [start(run, rank, port, own) for rank, (run, own) in enumerate(zip(runs, faults, strict=True))]


def start(run: Run, rank: int, port: int, faults: Sequence[Fault]) -> ForkServerProcess:
    """Start the process of one node; they meet at that port."""
    place = functools.partial(_as_node, rank, port, str(word_file(run, rank)))
    return start_trainer(run, place, every_step, *faults, name=f"run-{rank}.json")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def word_file(run: Run, rank: int) -> Path:
    """Where a node's last word goes."""
    return Path(run.manifest_dir, f"termination-{rank}.json")


def last_word(run: Run, rank: int) -> Termination:
    """What a node said at its end."""
    return Termination.model_validate_json(word_file(run, rank).read_text())


def curve(run: Run) -> list[dict[str, float]]:
    """Loss, its terms and the gradient's norm after each step, and the metrics of each evaluation."""
    found: list[dict[str, float]] = []
    for event in events(run):
        if event["event"] == "evaluation":
            found.append({"step": event["step"], **event["metrics"]})
        elif event["event"] == "progress" and (loss := event["progress"].get("loss")) is not None:
            said = event["progress"]
            point = {"step": said["step"], "loss": loss, "norm": said["gradNorm"], **said.get("lossTerms", {})}
            found.append({name: float(value) for name, value in point.items()})
    return [point for number, point in enumerate(found) if point not in found[:number]]


def _as_node(rank: int, port: int, word: str) -> None:
    os.environ |= {
        "JOB_COMPLETION_INDEX": str(rank),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TERMINATION_MESSAGE_PATH": word,
    }


def every_step() -> None:
    """Write down the progress of every step."""
    from finetune_trainer import progress

    progress._MIN_INTERVAL_SECONDS = 0.0


def connect_only_to_the_meeting_place() -> None:
    """The kernel lets this process connect to no other port, as a NetworkPolicy does that forgets the others."""
    import ctypes

    create_ruleset, add_rule, restrict_self = 444, 445, 446
    connect_tcp, port_rule, set_no_new_privs = 2, 2, 38
    libc = ctypes.CDLL(None, use_errno=True)
    handled = struct.pack("QQ", 0, connect_tcp)  # of files nothing, of the network to connect
    allowed = struct.pack("QQ", connect_tcp, int(os.environ["MASTER_PORT"]))
    ruleset = libc.syscall(create_ruleset, handled, len(handled), 0)
    done = [
        libc.syscall(add_rule, ruleset, port_rule, allowed, 0),
        libc.prctl(set_no_new_privs, 1, 0, 0, 0),
        libc.syscall(restrict_self, ruleset, 0),
    ]
    if ruleset < 0 or any(done):
        raise OSError(ctypes.get_errno(), "Landlock")


def has_landlock() -> bool:
    """Whether the kernel can keep a process from ports: Linux 6.7 and later."""
    import ctypes

    get_version = 1
    with contextlib.suppress(OSError):
        return sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, 0, get_version) >= 4
    return False


def wait_at_most(seconds: float) -> None:
    """For other processes: to come, and to answer."""
    from finetune_trainer import rendezvous

    rendezvous.WAIT_SECONDS = seconds


def look_at_most(seconds: float) -> None:
    """For what the first process writes."""
    from finetune_trainer import run

    run._SEEN_SECONDS = seconds


def not_a_number(place: str, call: int) -> None:
    """The n-th call of a function gives NaN."""
    processes._wrap(place, call, lambda function, *args, **kwargs: function(*args, **kwargs) * float("nan"))


def fail(place: str, call: int, code: int) -> None:
    """The n-th call of a function raises a TrainerError."""

    def raise_it(*_: Any, **__: Any) -> None:
        from finetune_api.exit_codes import ExitCode
        from finetune_trainer.errors import TrainerError

        raise TrainerError(ExitCode(code), "it was made to fail")

    processes._wrap(place, call, raise_it)


def gpu_fails(call: int, message: str) -> None:
    """The n-th sum over the processes raises what PyTorch raises for a GPU of its own."""

    def raise_it(*_: Any, **__: Any) -> None:
        import torch

        raise torch.AcceleratorError(message)

    processes._wrap("torch.distributed:all_reduce", call, raise_it)


def tell_at_the_end_whether_joined(file: Path) -> None:
    """Write down whether this process is still one of a group when it says its last word."""

    def tell() -> None:
        import torch.distributed

        file.write_text(str(torch.distributed.is_initialized()))

    processes._before("finetune_trainer.__main__:write_termination", 1, tell)


def slow_batches(call: int, seconds: float) -> None:
    """In the n-th evaluation every batch takes longer."""

    def wrap(function: Any, *args: Any) -> Any:
        for chunk in function(*args):
            time.sleep(seconds)
            yield chunk

    processes._wrap("finetune_trainer.evaluation:by_length", call, wrap)


def signal_while_waiting(call: int, number: int) -> None:
    """A signal a while after this process has begun to wait, for the n-th time, for work of the first."""

    def wait_and_signal() -> None:
        time.sleep(1.5)
        os.kill(os.getpid(), number)

    processes._before("finetune_trainer.distributed:_nothing", call, wait_and_signal)
