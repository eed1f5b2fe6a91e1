"""Turns SIGTERM and SIGINT into a flag that the loop looks at between steps and between evaluation batches."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Set once a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.is_set = False

    def install(self) -> None:
        """Handle SIGTERM and SIGINT by setting the flag."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True
