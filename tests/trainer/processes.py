"""Runs the trainer in processes of its own that can be killed, wherever in it a test says.

They are forked from a server that has imported torch and transformers once, so one costs a fraction of a second.
A fault is a function that a test sends along; it changes the process before the trainer starts in it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

from finetune_api.run import Run

Fault = Callable[[], None]

_PRELOADED = ["pytest", "torch", "transformers", "peft", "finetune_trainer.__main__", "trainer.preloaded"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_PRELOADED)
_EVENTS = {"call", "c_call"}


def run_trainer(run: Run, *faults: Fault) -> int:
    """The exit code of the trainer's command in a process of its own; minus the signal that killed it."""
    return exit_code(start_trainer(run, *faults))


def start_trainer(run: Run, *faults: Fault, name: str = "run.json") -> ForkServerProcess:
    """Start the trainer's command in a process of its own; `name` is that of its file in the work directory."""
    work_dir = Path(run.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    run_file = work_dir / name
    run_file.write_text(run.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    _start_server()
    process = _CONTEXT.Process(target=_main, args=(run_file, faults))
    process.start()
    return process


def exit_code(process: ForkServerProcess) -> int:
    """How a process ends."""
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"the trainer {process.pid} did not end")
    return process.exitcode


@functools.cache
def _start_server() -> None:
    # Before Python 3.13 the server does not get our sys.path, and then silently imports nothing of ours.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), path]))
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def _main(run_file: Path, faults: tuple[Fault, ...]) -> None:
    from finetune_trainer.__main__ import main
    from finetune_trainer.export import reload

    reload.compare = lambda *_: 0.0  # type: ignore[assignment]
    for fault in faults:
        fault()
    logging.disable()
    sys.argv = ["finetune_trainer", str(run_file)]
    sys.exit(main())


def environment(variables: dict[str, str]) -> None:
    """Set variables: the server that processes are forked from has those of the time when it started."""
    os.environ |= variables


def threads(number: int) -> None:
    """Compute on so many threads."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(number)
    torch.set_num_threads(number)


def count_events(answer: Path) -> None:
    """Write down how many Python and C calls there are from the loop's start to the last word."""
    counter = _Counter(None)

    def write_down() -> None:
        sys.setprofile(None)
        answer.write_text(str(counter.num_events))

    _before("finetune_trainer.loop:TrainingLoop.run", 1, lambda: sys.setprofile(counter))
    _before("finetune_trainer.__main__:write_termination", 1, write_down)


def kill_at_event(number: int) -> None:
    """SIGKILL at that Python or C call, counted from the loop's start."""
    _before("finetune_trainer.loop:TrainingLoop.run", 1, lambda: sys.setprofile(_Counter(number)))


def kill_after(seconds: float) -> None:
    """SIGKILL that long after the loop's start, wherever the process is then, in C++ too."""
    import threading

    def watch() -> None:
        time.sleep(seconds)
        _kill()

    _before("finetune_trainer.loop:TrainingLoop.run", 1, lambda: threading.Thread(target=watch, daemon=True).start())


def kill_within(place: str, call: int, event: int) -> None:
    """SIGKILL within the n-th call of a function: at that Python or C call in it, or when it returns."""

    def wrap(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        sys.setprofile(_Counter(event))
        function(*args, **kwargs)
        sys.setprofile(None)
        _kill()

    _wrap(place, call, wrap)


def signal_before(place: str, call: int, number: int = signal.SIGTERM, times: int = 1) -> None:
    """A signal before the n-th call of a function."""

    def send() -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    _before(place, call, send)


def hang_before(place: str, call: int) -> None:
    """Wait before the n-th call of a function, in the kernel, for what never comes."""
    _before(place, call, wait_for_ever)


def wait_for_ever() -> None:
    """Read from a pipe that nobody writes to."""
    end, _ = os.pipe()
    os.read(end, 1)


def hang_at_most(seconds: float) -> None:
    """The watchdog's patience."""
    from finetune_trainer import watchdog

    watchdog.LIMIT_SECONDS, watchdog.LOOK_SECONDS = seconds, 0.25


def speak_at_most(seconds: float) -> None:
    """The watchdog's patience with the last word."""
    from finetune_trainer import watchdog

    watchdog.LAST_WORD_SECONDS = seconds


def hang_in_a_child(pid_file: Path) -> None:
    """Let the export be compared by a process that hangs."""
    from finetune_trainer import watchdog
    from finetune_trainer.export import reload

    def compare(*_: Any) -> float:
        with subprocess.Popen(["sleep", "100"]) as process, watchdog.child(process.pid):
            pid_file.write_text(str(process.pid))
            process.wait()
        return 0.0

    reload.compare = compare  # type: ignore[assignment]


def busy_before(place: str, call: int, seconds: float) -> None:
    """Compute for so long before the n-th call of a function, and tell nothing meanwhile."""

    def compute() -> None:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            sum(range(10_000))

    _before(place, call, compute)


def write_before(place: str, call: int, seconds: float, file: Path) -> None:
    """Write to a file for so long before the n-th call of a function, as a slow download does, and tell nothing."""

    def write() -> None:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            file.write_bytes(bytes(100_000))
            time.sleep(0.1)

    _before(place, call, write)


def _before(place: str, call: int, action: Callable[[], Any]) -> None:
    def wrap(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        action()
        return function(*args, **kwargs)

    _wrap(place, call, wrap)


def _wrap(place: str, call: int, wrap: Callable[..., Any]) -> None:
    """Put `wrap` in the place of the n-th call of a function, given as `module:name` or `module:Class.name`."""
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    function = getattr(owner, name)
    num_calls = 0

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        return wrap(function, *args, **kwargs) if num_calls == call else function(*args, **kwargs)

    setattr(owner, name, wrapped)


class _Counter:
    """A profile function that counts calls, and ends the process at one of them."""

    def __init__(self, end: int | None) -> None:
        self.num_events = 0
        self.end = end

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in _EVENTS:
            self.num_events += 1
            if self.num_events == self.end:
                _kill()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal is on its way
