"""Starts a real node for a pytest fixture, or skips by name where none can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .binaries import BinariesUnavailableError
from .needed import aloud, cannot_be_had
from .node import NodeCluster
from .node_machine import NodeUnavailableError, why_impossible


@contextmanager
def running_node(config: pytest.Config, assets: Path, *, bare: bool = False) -> Iterator[NodeCluster]:
    """A control plane with a real node; `bare` is one that NodeCluster.start explains."""
    if reason := why_impossible():
        pytest.skip(reason)
    if not (assets / "models").exists():
        pytest.fail("build/assets is missing: run `make assets`", pytrace=False)
    with ExitStack() as stack:
        try:
            with aloud(config):  # images and programs are built
                cluster = stack.enter_context(NodeCluster.start(bare=bare))
        except (NodeUnavailableError, BinariesUnavailableError) as error:
            cannot_be_had(str(error))
        yield cluster
