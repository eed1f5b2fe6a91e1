"""The order of the integration tests: what judges the whole session comes last."""

from __future__ import annotations

import pytest

LAST = "test_operator_rights.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == LAST)
