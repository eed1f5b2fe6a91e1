"""The operator's command: `python -m finetune_operator`, set by environment variables FINETUNE_*."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator

from pydantic import ValidationError

from finetune_operator.host.app import App, LostLease
from finetune_operator.host.settings import PREFIX, OperatorSettings, from_environment

logger = logging.getLogger("finetune_operator")


def main() -> int:
    """Run until a signal or a failure; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # One line for every event of every object says nothing that the objects do not say.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    try:
        settings = from_environment()
    except ValidationError as error:
        for problem in error.errors():
            logger.error("%s%s: %s", PREFIX, "_".join(map(str, problem["loc"])).upper(), problem["msg"])
        return 2
    return asyncio.run(_run(settings))


async def _run(settings: OperatorSettings) -> int:
    loop = asyncio.get_running_loop()

    def take_signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)

    task = asyncio.ensure_future(App(settings, take_signals).run())
    take_signals()
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await task
        except Exception as error:
            for cause in _causes(error):
                expected = isinstance(cause, (LostLease, OSError))  # they say it all
                logger.critical("%s: %s", type(cause).__name__, cause, exc_info=None if expected else cause)
            return 1
    return 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What is inside groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())
