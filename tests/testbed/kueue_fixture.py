"""The pytest fixture that gives tests a Kueue: built once before the first test, or skipped by name."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest

from .binaries import BinariesUnavailableError, BuildFailedError
from .kueue import Kueue, find_kueue


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have Kueue before the first test starts: to build it takes longer than a test may."""
    wanted = any("kueue" in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        try:
            find_kueue()
        except (BinariesUnavailableError, BuildFailedError):
            return  # the fixture tells


@pytest.fixture(scope="session")
def kueue() -> Kueue:
    """Kueue; skip only where it cannot be had."""
    try:
        return find_kueue()
    except BinariesUnavailableError as error:
        reason = str(error)
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
