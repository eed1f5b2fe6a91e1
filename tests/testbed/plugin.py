"""The pytest fixtures that give the tests one API server, or one whole cluster, per session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress

import pytest

from account_rights import missing

from .apiserver import ApiServer
from .binaries import CONTROL_PLANE_NAMES, NAMES, Binaries, BinariesUnavailableError, BuildFailedError, find
from .cluster import Cluster, Namespace
from .needed import aloud, found
from .operator_process import OperatorProcess


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the programs before the first test starts: a build may take longer than a test may."""
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    names = CONTROL_PLANE_NAMES if "control_plane" in wanted else NAMES
    if session.config.option.collectonly or not wanted & {"control_plane", "api_server"}:
        return
    with suppress(BinariesUnavailableError, BuildFailedError):  # the fixtures tell
        _find(session.config, names)


@pytest.fixture(scope="session")
def api_server(pytestconfig: pytest.Config) -> Iterator[ApiServer]:
    """Run a real API server; skip only where its programs cannot be had."""
    with ApiServer.start(_found(pytestconfig, NAMES)) as server:
        yield server


@pytest.fixture(scope="session")
def control_plane(pytestconfig: pytest.Config) -> Binaries:
    """The programs of a control plane; skip only where they cannot be had."""
    return _found(pytestconfig, CONTROL_PLANE_NAMES)


@pytest.fixture(scope="session")
def cluster(control_plane: Binaries) -> Iterator[Cluster]:
    """Run a control plane with a node that is played; at the end, no operator has lacked a right in any test."""
    with Cluster.start(control_plane) as started:
        yield started
        assert not missing(started.server.audit, started.client)


@pytest.fixture
def namespace(cluster: Cluster) -> Namespace:
    """A namespace of the test's own."""
    return cluster.namespace()


@pytest.fixture(scope="module")
def operator(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[OperatorProcess]:
    """The operator of a module's tests, with the module's OPERATOR_SETTINGS."""
    settings = getattr(request.module, "OPERATOR_SETTINGS", {})
    cluster.release_lease()
    identity = f"operator-{request.module.__name__}".replace("_", "-")
    with OperatorProcess(cluster.server, identity, **settings).running() as process:
        yield process
        assert process.terminate() == 0, process.log()
        assert "Traceback" not in process.log()


@pytest.fixture
def start_operator(cluster: Cluster) -> Callable[..., AbstractContextManager[OperatorProcess]]:
    """Starts one more replica, as a with block."""

    def start(identity: str, *, leading: bool = True, **settings: str | int) -> AbstractContextManager[OperatorProcess]:
        return OperatorProcess(cluster.server, identity, **settings).running(leading=leading)

    return start


def _find(config: pytest.Config, names: tuple[str, ...]) -> Binaries:
    with aloud(config):
        return find(names)


def _found(config: pytest.Config, names: tuple[str, ...]) -> Binaries:
    return found(lambda: _find(config, names), "a real API server: ")
