"""From the outcomes of tests to a verdict on each of the 26 checks. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from security.checks import CHECKS, Check

_WIDTH = 110
_NAME = max(len(check.name) for check in CHECKS)


class Outcome(StrEnum):
    """How a test ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Ended:
    """A test that ended, and the checks that it is part of."""

    test: str
    checks: tuple[int, ...]
    outcome: Outcome
    why: str = ""
    """Why it was skipped."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests say of one check."""

    check: Check
    tests: Sequence[Ended]

    @property
    def word(self) -> str:
        """ok, FAILED, skipped, or missing when there is no test at all."""
        if any(test.outcome is Outcome.FAILED for test in self.tests):
            return "FAILED"
        if any(test.outcome is Outcome.PASSED for test in self.tests):
            return "ok"
        return "skipped" if self.tests else "missing"


def judge(tests: Iterable[Ended]) -> list[Verdict]:
    """A verdict on each check, in their order."""
    ended = list(tests)
    return [Verdict(check, [test for test in ended if check.number in test.checks]) for check in CHECKS]


def all_hold(verdicts: Iterable[Verdict]) -> bool:
    """Whether each check has a test that passed, and none that failed."""
    return all(verdict.word == "ok" for verdict in verdicts)


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The lines that are printed at the end: each check, what it does not show, what was skipped, and the sum."""
    yield f"{'':2}  {'check':{_NAME}}  {'verdict':8}  tests"
    for verdict in verdicts:
        check, skipped = verdict.check, [test for test in verdict.tests if test.outcome is Outcome.SKIPPED]
        count = f"{len(verdict.tests) - len(skipped)}" + (f", {len(skipped)} skipped" if skipped else "")
        yield f"{check.number:2}  {check.name:{_NAME}}  {verdict.word:8}  {count}"
        if check.not_shown:
            yield from _indented(f"not shown: {check.not_shown}")
        for test in skipped:
            yield from _indented(f"skipped: {test.test}: {test.why}")
    yield f"{sum(verdict.word == 'ok' for verdict in verdicts)} of {len(verdicts)}"


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6)
