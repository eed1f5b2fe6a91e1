"""The pytest plugin of `make security`: it prints the verdict on each check, and fails unless all of them hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from security.checks import CHECKS
from security.verdicts import Ended, Outcome, all_hold, judge, table

_NUMBERS = frozenset(check.number for check in CHECKS)


class SecurityReport:
    """Follows one session."""

    def __init__(self) -> None:
        self._checks: dict[str, tuple[int, ...]] = {}
        self._ended: dict[str, Ended] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._checks = {item.nodeid: _numbers(item) for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        earlier = self._ended.get(report.nodeid)
        if report.passed and report.when != "call":
            return  # it is the test itself that shows something
        if earlier is not None and earlier.outcome is Outcome.FAILED:
            return
        self._ended[report.nodeid] = Ended(
            report.nodeid, self._checks.get(report.nodeid, ()), Outcome(report.outcome), _why_skipped(report)
        )

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        if session.exitstatus == pytest.ExitCode.OK and not all_hold(judge(self._ended.values())):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        yield

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("security")
        for line in table(judge(self._ended.values())):
            terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SecurityReport())


def _numbers(item: pytest.Item) -> tuple[int, ...]:
    numbers = [number for mark in item.iter_markers("security") for number in mark.args]
    if not _NUMBERS.issuperset(numbers):
        raise pytest.UsageError(f"{item.nodeid}: security{tuple(numbers)}: the checks are 1 to {len(CHECKS)}")
    return tuple(numbers)


def _why_skipped(report: pytest.TestReport) -> str:
    if not report.skipped:
        return ""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(getattr(report, "wasxfail", report.longrepr))
