"""Helm for the chart's tests: on the PATH, or built once before the first test."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from chart.rendering import Chart
from testbed.binaries import BinariesUnavailableError, BuildFailedError
from testbed.helm import find_helm

pytest_plugins = ["testbed.plugin"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have helm before the first test starts: to build it takes longer than a test may."""
    wanted = any("chart" in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        try:
            find_helm()
        except (BinariesUnavailableError, BuildFailedError):
            return  # the fixture tells


@pytest.fixture(scope="session")
def helm() -> Path:
    """Where helm is; skip only where it cannot be had."""
    try:
        return find_helm()
    except BinariesUnavailableError as error:
        reason = str(error)
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chart(helm: Path) -> Chart:
    """The chart, to be rendered."""
    return Chart(helm)
