"""Stands for the subprocess module where an export is reloaded: by tests/trainer/reload_server.py, in a moment."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from finetune_trainer.export import reload

SERVER = Path(__file__).with_name("reload_server.py")


class Reloads:
    """The server, started when it is first needed."""

    DEVNULL, PIPE = subprocess.DEVNULL, subprocess.PIPE

    def __init__(self, scratch: Path) -> None:
        self.said = scratch / "said"
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-P", str(SERVER)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process

    def Popen(self, args: Sequence[str], *, env: dict[str, str], **_: Any) -> Reloading:
        return Reloading(self, args, env)

    def run(self, args: Sequence[str], env: dict[str, str]) -> int:
        [_, isolated, script, *arguments] = args
        assert isolated == "-P"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"script": script, "arguments": arguments, "env": env, "said": str(self.said)}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


class Reloading:
    """What is used of a process."""

    def __init__(self, reloads: Reloads, args: Sequence[str], env: dict[str, str]) -> None:
        self._reloads, self._args, self._env = reloads, args, env
        self.pid = reloads.process.pid
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def communicate(self) -> tuple[None, str]:
        self.returncode = self._reloads.run(self._args, self._env)
        return None, self._reloads.said.read_text(encoding="utf-8")


@contextlib.contextmanager
def quick_reloads(scratch: Path) -> Iterator[None]:
    """Let exports be reloaded so within this process."""
    reloads = Reloads(scratch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reload, "subprocess", reloads)
        yield
    reloads.close()
