"""The operator's command: `python -m finetune_operator`, set by environment variables FINETUNE_*."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from finetune_api.logs import log_to
from finetune_operator.host.abandoned import closing_abandoned
from finetune_operator.host.app import App, LostLease
from finetune_operator.host.settings import PREFIX, OperatorSettings, from_environment

_GC_THRESHOLD = 10_000
_LINGER_SECONDS = 5.0

logger = logging.getLogger("finetune_operator")


def main() -> int:
    """Run until a signal or a failure; returns the exit code."""
    # A page of a list makes tens of thousands of objects, and none is garbage that reference counting would miss.
    gc.set_threshold(_GC_THRESHOLD)
    log_to(sys.stderr, "%(asctime)s %(levelname)s %(name)s %(message)s")
    # One line for every event of every object says nothing that the objects do not say.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    try:
        settings = from_environment()
    except ValidationError as error:
        for problem in error.errors():
            logger.error("%s", _said(problem))
        return 2
    return asyncio.run(_run(settings))


def _said(problem: ErrorDetails) -> str:
    """What is wrong with a setting, by its name; what is wrong with several names them itself."""
    said = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return said
    name, *inner = map(str, problem["loc"])
    return f"{'.'.join([f'{PREFIX}{name.upper()}', *inner])}: {said}"


async def _run(settings: OperatorSettings) -> int:
    async with closing_abandoned():
        return await _run_until_told(settings)


async def _run_until_told(settings: OperatorSettings) -> int:
    loop = asyncio.get_running_loop()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)

    task = asyncio.ensure_future(App(settings, take_signals).run())
    take_signals()
    code = 0
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await task
        except Exception as error:
            for cause in _causes(error):
                expected = isinstance(cause, (LostLease, OSError))  # they say it all
                logger.critical("%s: %s", type(cause).__name__, cause, exc_info=None if expected else cause)
            code = 1
    _end_soon(code)
    return code


def _end_soon(code: int) -> None:
    """End the process even if some library's task does not let itself be cancelled: a replica must not linger."""
    timer = threading.Timer(_LINGER_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What is inside groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())
