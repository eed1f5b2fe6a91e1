"""Logs in which a record is a line, whatever names, rows and errors are quoted in it."""

from __future__ import annotations

import logging
from typing import TextIO

from finetune_api.problems import printable


class OneLineFormatter(logging.Formatter):
    """Escapes line breaks and control characters of a message; a traceback follows it, line by line and indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: logging._SysExcInfoType) -> str:
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())


def log_to(stream: TextIO, format: str) -> None:
    """Log from INFO on to a stream."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter(format))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
