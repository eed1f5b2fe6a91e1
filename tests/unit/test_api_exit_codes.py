"""Exit codes are unique, in their ranges, explained, and documented as they are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from finetune_api import exit_codes
from finetune_api.exit_codes import ExitCode

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md"
CONDITION_REASON = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"


def test_no_code_is_given_twice() -> None:
    """An IntEnum would make the second name an alias and say nothing."""
    tree = ast.parse(Path(exit_codes.__file__).read_text(encoding="utf-8"))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ExitCode"]
    assert len([node for node in body if isinstance(node, ast.Assign)]) == len(ExitCode)
    assert len(ExitCode.__members__) == len(ExitCode)


@pytest.mark.parametrize("code", ExitCode)
def test_codes_are_in_their_ranges(code: ExitCode) -> None:
    assert code in (0, 1, 143) or 10 <= code <= 29 or 40 <= code <= 59
    assert code.permanent == (10 <= code <= 29)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (ExitCode.DATA_INVALID, 11),
        (ExitCode.CREDENTIALS_INVALID, 12),
        (ExitCode.NON_FINITE_LOSS, 15),
        (ExitCode.OUT_OF_MEMORY, 16),
        (ExitCode.STORAGE_FULL, 40),
        (ExitCode.NETWORK_UNAVAILABLE, 41),
        (ExitCode.HANG, 43),
        (ExitCode.PEER_LOST, 44),
        (ExitCode.STOPPED, 143),
    ],
)
def test_published_codes_stay(code: ExitCode, value: int) -> None:
    assert code == value


def test_reasons_are_unique_and_fit_a_condition() -> None:
    reasons = [code.reason for code in ExitCode]
    assert len(set(reasons)) == len(reasons)
    assert all(re.fullmatch(CONDITION_REASON, reason) for reason in reasons)
    assert ExitCode.OUT_OF_MEMORY.reason == "OutOfMemory"


@pytest.mark.parametrize("code", ExitCode)
def test_every_code_is_explained_in_a_sentence(code: ExitCode) -> None:
    assert code.explanation.endswith(".")
    assert "|" not in code.explanation


def test_what_is_retried() -> None:
    by_words: dict[str, set[int]] = {}
    for code in ExitCode:
        by_words.setdefault(code.retried, set()).add(int(code))
    assert by_words["yes, not counted"] == {44, 143}
    assert by_words["up to `spec.backoffLimit` times"] == {1, 40, 41, 42, 43}
    assert by_words["no"] == {0, *range(10, 19)}


def test_page_is_not_stale() -> None:
    assert PAGE.read_text(encoding="utf-8") == exit_codes.render(), "run `make generate`"


def test_table_has_a_row_for_every_code() -> None:
    rows = [row.split(" | ")[0] for row in exit_codes.markdown_table().splitlines()[2:]]
    assert rows == [f"| {int(code)}" for code in ExitCode]
