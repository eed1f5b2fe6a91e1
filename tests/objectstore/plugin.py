"""Pytest fixtures of the S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import pytest

from testbed.go_build import BinariesUnavailableError, BuildFailedError
from testbed.versitygw import find_versitygw

from .server import ObjectStore, serving, use


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """The server; without the means to build it a test is skipped by name, and under CI it fails."""
    try:
        find_versitygw()
    except BinariesUnavailableError as error:
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    with serving(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, whose owner this process is."""
    use(monkeypatch, object_store.environment())
    return object_store


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the server before the first test starts: to build it takes longer than a test may."""
    wanted = any("object_store" in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    aloud = capture.global_and_fixture_disabled() if capture else nullcontext()
    with aloud, suppress(BinariesUnavailableError, BuildFailedError):  # the fixture tells
        find_versitygw()
