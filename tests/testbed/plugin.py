"""The pytest fixture that gives the tests one API server per session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .apiserver import ApiServer
from .binaries import Binaries, BinariesUnavailableError, find


@pytest.fixture(scope="session")
def api_server(pytestconfig: pytest.Config) -> Iterator[ApiServer]:
    """Run a real API server; skip only where its programs cannot be had."""
    try:
        binaries = _found(pytestconfig)
    except BinariesUnavailableError as error:
        reason = f"api_server: {error}"
    else:
        with ApiServer.start(binaries) as server:
            yield server
        return
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _found(config: pytest.Config) -> Binaries:
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return find()
    # A build takes minutes, and its progress must be seen meanwhile.
    with capture.global_and_fixture_disabled():
        return find()
