"""The verdict on the checks: a check holds when a test of it ran and passed, and nothing is passed over in silence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from security.checks import CHECKS, documented
from security.verdicts import Ended, Outcome, all_hold, judge, table

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"


def ended(outcome: str, *checks: int, why: str = "") -> Ended:
    return Ended("a test", checks, Outcome(outcome), why)


def word_of_check_3(*tests: Ended) -> str:
    return next(verdict.word for verdict in judge(tests) if verdict.check.number == 3)


def test_the_checks_are_numbered_from_1_to_26() -> None:
    assert [check.number for check in CHECKS] == list(range(1, 27))


def test_a_check_holds_when_a_test_passed_and_none_failed() -> None:
    assert word_of_check_3() == "missing"
    assert word_of_check_3(ended("passed", 4)) == "missing"
    assert word_of_check_3(ended("skipped", 3)) == "skipped"
    assert word_of_check_3(ended("skipped", 3), ended("passed", 2, 3)) == "ok"
    assert word_of_check_3(ended("passed", 3), ended("failed", 3)) == "FAILED"


def test_all_hold_only_when_each_does() -> None:
    every = [ended("passed", check.number) for check in CHECKS]
    assert all_hold(judge(every))
    assert not all_hold(judge(every[1:]))
    assert not all_hold(judge([*every[1:], ended("skipped", 1)]))
    assert not all_hold(judge([*every, ended("failed", 1)]))


def test_the_table_names_what_was_skipped_and_what_is_not_shown() -> None:
    said = "\n".join(table(judge([ended("passed", 22), ended("skipped", 22, why="no network plug-in")])))
    assert re.search(r"^22 .* ok +1, 1 skipped$", said, re.MULTILINE)
    assert "skipped: a test: no network plug-in" in said
    assert "not shown: another network plug-in" in said
    assert said.endswith("1 of 26")


def run(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """A session of its own with the plugin, over these tests."""
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = security(number, ...)\naddopts = --strict-markers\n")
    (folder / "test_these.py").write_text("import pytest\n" + "\n".join(tests))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "security.report", "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )


EVERY = f"@pytest.mark.security(*range(1, {len(CHECKS) + 1}))\n"


def test_a_session_in_which_each_check_has_a_passing_test_ends_well(tmp_path: Path) -> None:
    done = run(tmp_path, EVERY + "def test_all(): pass")
    assert (done.returncode, "26 of 26" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("@pytest.mark.security(*range(1, 26))\ndef test_most(): pass", "25 of 26"),
        (EVERY + "def test_all(): pytest.skip('not here')", "0 of 26"),
        (EVERY + "@pytest.mark.xfail\ndef test_all(): assert False", "0 of 26"),
        (EVERY + "def test_all(nowhere): pass", "0 of 26"),
        (EVERY + "def test_all(): pass\n@pytest.mark.security(7)\ndef test_one(): assert False", "25 of 26"),
    ],
    ids=["missing", "skipped", "expected to fail", "broken fixture", "failed"],
)
def test_a_session_without_a_passing_test_for_each_check_fails(tmp_path: Path, tests: str, said: str) -> None:
    done = run(tmp_path, tests)
    assert done.returncode == 1, done.stdout
    assert said in done.stdout


def test_a_test_that_fails_at_its_end_does_not_pass(tmp_path: Path) -> None:
    fixture = "@pytest.fixture\ndef ending():\n    yield\n    assert False\n"
    assert "0 of 26" in run(tmp_path, fixture + EVERY + "def test_all(ending): pass").stdout


def test_a_number_that_is_no_check_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, "@pytest.mark.security(27)\ndef test_it(): pass")
    assert done.returncode != 0
    assert "the checks are 1 to 26" in done.stdout + done.stderr


def test_the_documentation_has_this_very_table() -> None:
    assert documented() in (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_file_of_this_folder_is_run_by_one_target_of_make_test() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    patterns = re.findall(r"tests/security/(\S+\.py)", makefile)
    for file in Path(__file__).parent.glob("test_*.py"):
        assert sum(file.match(pattern) for pattern in patterns) == 1, file.name
