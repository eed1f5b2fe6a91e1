"""The trainer as a child process: started, followed by its events, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from finetune_api.exit_codes import ExitCode
from finetune_cli.extras import lack_of
from finetune_cli.local import LocalRefused, Placed, writing_to
from finetune_trainer.hold import only_trainer_in

_POLL_SECONDS = 0.1
_REQUIRED = ("torch", "transformers", "peft")


class Trainer:
    """One trainer process."""

    def __init__(self, placed: Placed) -> None:
        if lack := lack_of(_REQUIRED, "cli,trainer"):
            raise LocalRefused(f"training {lack}", ExitCode.INTERNAL_ERROR)
        with writing_to(placed.directory):
            with only_trainer_in(placed.directory):  # before the last word of another is lost
                placed.termination_file.unlink(missing_ok=True)
            self._events = _Tail(placed.progress_file)
            log = placed.log_file.open("ab")
        with log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer", "--attached", str(placed.run_file)],
                # Nothing comes through it, but it ends with us, whatever ends us.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own, so that Ctrl-C reaches us alone and we ask it to stop once.
                start_new_session=True,
                env=os.environ
                | {
                    "TERMINATION_MESSAGE_PATH": str(placed.termination_file),
                    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow everything down on a shared machine
                    "TOKENIZERS_PARALLELISM": "false",
                },
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # Whatever went wrong here, no trainer is left behind that nobody watches.
        self.kill()
        self._process.communicate()

    def events(self) -> Iterator[dict[str, Any] | None]:
        """The process's events until it has ended, and None whenever there are no more of them yet."""
        while True:
            ended = self._process.poll() is not None  # asked before reading, so that the last events are not missed
            yield from self._events.read()
            if ended:
                return
            yield None
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Ask it to save a checkpoint and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """The exit code; minus the signal's number when a signal killed it."""
        return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)


class _Tail:
    """Lines appended to a file since it was opened here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._partial = b""

    def read(self) -> Iterator[dict[str, Any]]:
        """The events of complete new lines."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except OSError:
            return
        self._position += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # the disk was full in the middle of a line
