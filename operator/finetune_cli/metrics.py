"""Serves the jobs' Prometheus metrics on this machine."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server

from finetune_cli.local import WRONG_COMMAND_LINE, LocalRefused
from finetune_operator.metrics.figures import JobSample
from finetune_operator.metrics.jobs import JobCollector

_ADDRESS = "127.0.0.1"


class MetricsServer:
    """An HTTP server on the loopback address with the metrics of some jobs."""

    def __init__(self, port: int, jobs: Callable[[], Iterable[JobSample]]) -> None:
        registry = CollectorRegistry()
        registry.register(JobCollector(jobs, lambda: datetime.now(UTC)))
        self.moved = False
        try:
            self._server, self._thread = start_http_server(port, _ADDRESS, registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise LocalRefused(f"--metrics-port {port}: {error.strerror}", WRONG_COMMAND_LINE) from None
            self._server, self._thread = start_http_server(0, _ADDRESS, registry)
            self.moved = True

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return f"http://{_ADDRESS}:{self._server.server_port}/metrics"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
