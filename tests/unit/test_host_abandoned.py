"""What a library leaves open ends in silence, in whichever order it was begun."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from finetune_operator.host.abandoned import closing_abandoned

Generator = AsyncIterator[int]
TIMES = 30
"""By asyncio's own way each time is a throw of a coin: it closes in the order of addresses."""


@contextlib.asynccontextmanager
async def pause_waiter() -> AsyncIterator[None]:
    """As kopf has one around each watch."""
    waiter = asyncio.create_task(asyncio.sleep(60))
    try:
        yield
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            waiter.cancel()
            await waiter


async def stream(closed: list[str]) -> Generator:
    try:
        yield 1
    finally:
        await asyncio.sleep(0)
        closed.append("stream")


async def watch(closed: list[str]) -> Generator:
    try:
        async with pause_waiter():
            async for event in stream(closed):
                yield event
    finally:
        closed.append("watch")


async def abandon(closed: list[str], kept: list[Generator]) -> None:
    """As kopf's watcher, cancelled while it handles an event: its generator stays open, and its task holds it."""
    generator = watch(closed)
    kept.append(generator)
    async for _ in generator:
        return


@pytest.mark.parametrize("time", range(TIMES))
def test_abandoned_watches_are_closed_without_an_error(time: int, caplog: pytest.LogCaptureFixture) -> None:
    errors: list[dict[str, Any]] = []
    closed: list[str] = []
    kept: list[Generator] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with closing_abandoned():
            await abandon(closed, kept)

    asyncio.run(run())
    assert (errors, caplog.text) == ([], "")
    assert sorted(closed) == ["stream", "watch"]


def test_one_that_somebody_still_iterates_is_left_to_them() -> None:
    async def forever() -> Generator:
        await asyncio.sleep(60)
        yield 1

    async def run() -> None:
        async with closing_abandoned():
            task = asyncio.ensure_future(anext(forever()))
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()

    asyncio.run(run())


def test_an_error_on_the_way_is_told_and_the_others_are_closed(caplog: pytest.LogCaptureFixture) -> None:
    closed: list[str] = []
    kept: list[Generator] = []

    async def fails() -> Generator:
        try:
            yield 1
        finally:
            raise ValueError("no way")

    async def run() -> None:
        async with closing_abandoned():
            kept.append(failing := fails())
            await anext(failing)
            await abandon(closed, kept)

    asyncio.run(run())
    assert "ValueError: no way" in caplog.text
    assert sorted(closed) == ["stream", "watch"]
