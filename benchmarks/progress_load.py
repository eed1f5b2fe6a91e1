"""Plays the reporters of many trainers: each posts what a trainer does, every five seconds, by the same protocol.

A process of its own, started by `operator_scale.py progress`: its work reads from standard input and its findings go to
standard output, both JSON. One thread plays all of them; so the answers' times hold its own waiting as well.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import ssl
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.trainer_status import report_of
from finetune_api.v1alpha1.status import Progress

TIMEOUT_SECONDS = 5.0
_TOTAL_STEPS = 100_000

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Load:
    """What to send, and what came back."""

    host: str
    port: int
    ca_file: str
    interval: float
    seconds: float
    keep_alive: bool
    answers: dict[str, int] = field(default_factory=dict)
    answer_seconds: list[tuple[float, float]] = field(default_factory=list)
    """When each report was sent, from the start on, and how long its answer took."""

    def __post_init__(self) -> None:
        self._tls = ssl.create_default_context(cafile=self.ca_file)
        self._started_at = time.perf_counter()

    async def play(self, path: str, token: str) -> None:
        """One trainer, from a moment of its own within the first interval."""
        await asyncio.sleep(random.uniform(0, self.interval))
        connection: Connection | None = None
        step = 0
        while time.perf_counter() < self._started_at + self.seconds:
            step += 50
            started = time.perf_counter()
            if connection and connection[0].at_eof():
                connection = None  # the server has closed it meanwhile, as it may
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    connection = connection or await self._connect()
                    code = await self._post(connection, path, token, step)
            except (OSError, asyncio.IncompleteReadError) as error:
                code, connection = type(error).__name__, None
            self.answer_seconds.append((started - self._started_at, time.perf_counter() - started))
            self.answers[code] = self.answers.get(code, 0) + 1
            if connection and not self.keep_alive:
                connection[1].transport.abort()
                connection = None
            await asyncio.sleep(self.interval)

    async def _connect(self) -> Connection:
        return await asyncio.open_connection(self.host, self.port, ssl=self._tls, server_hostname=self.host)

    async def _post(self, connection: Connection, path: str, token: str, step: int) -> str:
        body = _body(step)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAccept-Encoding: identity\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {token}\r\n"
            f"Connection: {'keep-alive' if self.keep_alive else 'close'}\r\n\r\n"
        )
        reader, writer = connection
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = answer.lower().splitlines()
        length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
        await reader.readexactly(length)
        return lines[0].split()[1]


def _body(step: int) -> bytes:
    progress = Progress(
        step=step,
        total_steps=_TOTAL_STEPS,
        percent=100 * step // _TOTAL_STEPS,
        epoch=step / 1000,
        eta_seconds=_TOTAL_STEPS - step,
        loss=random.uniform(0.1, 2),
        learning_rate=1e-4,
        grad_norm=random.uniform(0.1, 2),
        tokens_per_second=random.uniform(9_000, 11_000),
        memory_peak_bytes=7_000_000_000,
        evaluation={"loss": 0.4, "accuracy": 0.9},
    )
    return report_of(progress, datetime.now(UTC)).model_dump_json(by_alias=True, exclude_none=True).encode()


async def _run(work: dict[str, Any]) -> Load:
    targets = work.pop("targets")
    load = Load(**work)
    async with asyncio.TaskGroup() as group:
        for path, token in targets:
            group.create_task(load.play(path, token))
    return load


def main() -> None:
    """Play, and print the findings."""
    load = asyncio.run(_run(json.load(sys.stdin)))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    json.dump({"answers": load.answers, "seconds": load.answer_seconds, "cpu_seconds": cpu}, sys.stdout)


if __name__ == "__main__":
    main()
