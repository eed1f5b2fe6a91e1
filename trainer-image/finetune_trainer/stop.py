"""Turns what asks a run to stop into a flag that the loop looks at between steps and between evaluation batches."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

_LOOK_SECONDS = 0.2


class StopFlag:
    """Set once the run is to stop."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        """Handle SIGTERM and SIGINT by setting the flag."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def follow(self, pipe: int) -> None:
        """Set the flag when the other end of a pipe is closed: whoever started this process has ended."""

        def watch() -> None:
            while os.read(pipe, 1):
                pass
            self.is_set = True

        threading.Thread(target=watch, name="starter-watch", daemon=True).start()

    def check(self, what: str) -> None:
        """Raise TrainerError once it is set, where there is no checkpoint to save; `what` says what is left undone."""
        if self.is_set:
            raise TrainerError(ExitCode.STOPPED, f"stopped while {what}", "start the job again")

    def wait(self, seconds: float, what: str) -> None:
        """Wait so long. Raises TrainerError as `check` does, within a moment."""
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            self.check(what)
            time.sleep(min(left, _LOOK_SECONDS))

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
