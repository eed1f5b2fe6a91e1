"""Starts a real node for a pytest fixture, or skips by name where none can run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .binaries import BinariesUnavailableError
from .node import NodeCluster
from .node_machine import NodeUnavailableError, why_impossible


@contextmanager
def running_node(config: pytest.Config, assets: Path, *, bare: bool = False) -> Iterator[NodeCluster]:
    """A control plane with a real node; `bare` is one that NodeCluster.start explains."""
    if reason := why_impossible():
        pytest.skip(reason)
    if not (assets / "models").exists():
        pytest.fail("build/assets is missing: run `make assets`", pytrace=False)
    capture = config.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        try:
            # Images and programs take minutes to build, and their progress must be seen meanwhile.
            with capture.global_and_fixture_disabled() if capture else ExitStack():
                cluster = stack.enter_context(NodeCluster.start(bare=bare))
        except (NodeUnavailableError, BinariesUnavailableError) as error:
            if os.environ.get("CI", "").lower() in ("true", "1"):
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        yield cluster
