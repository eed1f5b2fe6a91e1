"""What tests do about programs that they need: have them before the first test, and tell where they cannot be had."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NoReturn, TypeVar

import pytest

from .go_build import BinariesUnavailableError, BuildFailedError

Found = TypeVar("Found")


def cannot_be_had(reason: str) -> NoReturn:
    """Skip the test by name; under CI it fails."""
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def found(find: Callable[[], Found], what: str = "") -> Found:
    """What a test needs; skip only where it cannot be had. `what` begins the reason."""
    try:
        return find()
    except BinariesUnavailableError as error:
        reason = f"{what}{error}"
    cannot_be_had(reason)


def aloud(config: pytest.Config) -> AbstractContextManager[Any]:
    """Let what is printed be seen: a build takes minutes."""
    capture = config.pluginmanager.getplugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture else nullcontext()


def have_before_tests(session: pytest.Session, fixture: str, find: Callable[[], object]) -> None:
    """Have what a fixture gives before the first test starts: to build it takes longer than a test may."""
    wanted = any(fixture in getattr(item, "fixturenames", ()) for item in session.items)
    if session.config.option.collectonly or not wanted:
        return
    with aloud(session.config), suppress(BinariesUnavailableError, BuildFailedError):  # the fixture tells
        find()
