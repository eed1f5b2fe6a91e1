"""An asyncio loop whose clock jumps to the next timer instead of waiting for it: hours of an operator in a moment.

Nothing may wait for a socket or a thread in it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_TURN_SECONDS = 1e-6
"""Every turn of the loop takes some time, or what waits for a moment just ahead would wait for ever."""

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


class VirtualClock:
    """The time of a loop, in seconds since START."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        """As a date."""
        return START + timedelta(seconds=self.seconds)


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing is left that could wake it")
        self._clock.seconds += max(_TURN_SECONDS, timeout)
        return super().select(0)


def run_virtually(main: Callable[[VirtualClock], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run a coroutine to its end in virtual time."""
    clock = VirtualClock()
    loop = asyncio.SelectorEventLoop(_JumpingSelector(clock))
    loop.time = clock  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main(clock))
