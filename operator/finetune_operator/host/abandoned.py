"""Closes the asynchronous generators that a library leaves open, the outer ones first.

Kopf leaves a watch open whose task is cancelled while it hands on an event. At its end `asyncio.run` closes all that is
open at once, in any order; an outer generator that then leaves a context whose own generator is closed already fails
with "generator didn't stop after athrow()", and its traceback is the operator's last word.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator
from types import AsyncGeneratorType
from typing import Any

logger = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def closing_abandoned() -> AsyncIterator[None]:
    """At the end, close what was begun inside and is still open; what is being iterated stays."""
    begun: weakref.WeakValueDictionary[int, AsyncGeneratorType[Any, Any]] = weakref.WeakValueDictionary()
    number = itertools.count()
    hooks = sys.get_asyncgen_hooks()

    def begin(generator: AsyncGenerator[Any, Any]) -> None:
        if isinstance(generator, AsyncGeneratorType):
            begun[next(number)] = generator
        if hooks.firstiter is not None:
            hooks.firstiter(generator)

    sys.set_asyncgen_hooks(firstiter=begin)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(firstiter=hooks.firstiter)
        for _, generator in sorted(begun.items()):
            if not generator.ag_running:
                await _close(generator)


async def _close(generator: AsyncGeneratorType[Any, Any]) -> None:
    try:
        await generator.aclose()
    except Exception as error:
        logger.warning("%r did not close: %s: %s", generator, type(error).__name__, error)
