"""Pytest fixtures of the S3 server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.needed import found, have_before_tests
from testbed.versitygw import find_versitygw

from .server import ObjectStore, serving, use


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The server; without the means to build it a test is skipped by name, and under CI it fails."""
    found(find_versitygw)
    with serving(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, whose owner this process is."""
    use(monkeypatch, object_store.environment())
    return object_store


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the server before the first test starts."""
    have_before_tests(session, "object_store", find_versitygw)
