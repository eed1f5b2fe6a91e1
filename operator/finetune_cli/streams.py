"""Streams that may break off: a reader that goes away, a disk that is full."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, cast


def lasting(stream: IO[str] | None) -> IO[str]:
    """A stream that may break off, as a closed terminal or pipe does, or was never there; the rest is dropped."""
    return cast("IO[str]", _Lasting(stream or Path(os.devnull).open("w", encoding="utf-8")))


class _Lasting:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """Let the rest go nowhere, also what Python has kept to write it at the end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
