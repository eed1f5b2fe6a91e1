"""What asks `finetune run` to stop: Ctrl-C, SIGTERM, a terminal that is closed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune_cli.trainer import Trainer


class StopRequest:
    """The first lets the trainer save and stop, and no job starts after it; a second ends the trainer at once."""

    def __init__(self) -> None:
        self.is_set = False
        self.has_killed = False
        self._trainer: Trainer | None = None
        self._is_urgent = False
        self._is_told = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to the signals."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            numbers.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def passed_to(self, trainer: Trainer) -> Iterator[None]:
        """Let this trainer stop when it is asked for."""
        self._trainer = trainer
        if self.is_set:
            trainer.stop()
        try:
            yield
        finally:
            self._trainer = None

    def is_news(self) -> bool:
        """Whether it was asked for since this was called last; then somebody may want to know what happens."""
        was_told, self._is_told = self._is_told, self.is_set
        return self.is_set and not was_told

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_again, self.is_set = self._is_urgent, True
        # A closed terminal says so more than once, and nobody meant to lose a step by that.
        self._is_urgent = self._is_urgent or number != signal.SIGHUP
        if self._trainer is not None:
            if is_again and number != signal.SIGHUP:
                self.has_killed = True
                self._trainer.kill()
            else:
                self._trainer.stop()
