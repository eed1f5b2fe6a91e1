"""Helm for the chart's tests: on the PATH, or built once before the first test."""

from __future__ import annotations

from pathlib import Path

import pytest

from chart.rendering import Chart, Object, find_kubectl
from chart.value_sets import VALUE_SETS
from testbed.binaries import find
from testbed.helm import find_helm
from testbed.needed import found, have_before_tests

pytest_plugins = ["testbed.plugin"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have helm before the first test starts."""
    have_before_tests(session, "chart", find_helm)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def helm() -> Path:
    """Where helm is; skip only where it cannot be had."""
    return found(find_helm)


@pytest.fixture(scope="session")
def chart(helm: Path) -> Chart:
    """The chart, to be rendered."""
    return Chart(helm)


@pytest.fixture(scope="session")
def kubectl() -> str:
    """Where kubectl is; skip only where it cannot be had."""
    return find_kubectl() or str(found(find).kubectl)


@pytest.fixture(params=VALUE_SETS)
def rendered(chart: Chart, request: pytest.FixtureRequest) -> list[Object]:
    """The objects of each of the sets of values."""
    return chart.render(VALUE_SETS[request.param])
