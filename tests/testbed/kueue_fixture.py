"""The pytest fixture that gives tests a Kueue: built once before the first test, or skipped by name."""

from __future__ import annotations

import pytest

from .kueue import Kueue, find_kueue
from .needed import found, have_before_tests


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have Kueue before the first test starts."""
    have_before_tests(session, "kueue", find_kueue)


@pytest.fixture(scope="session")
def kueue() -> Kueue:
    """Kueue; skip only where it cannot be had."""
    return found(find_kueue)
