"""The cluster with a real node that the end-to-end tests share, and an operator for each module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.jobs import ASSETS, Team
from testbed.node import NodeCluster
from testbed.node_fixture import running_node
from testbed.operator_process import OperatorProcess

JUDGE = "test_rights.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What judges the session by its audit log comes last."""
    items.sort(key=lambda item: item.path.name == JUDGE)


@pytest.fixture(scope="session")
def node_cluster(pytestconfig: pytest.Config) -> Iterator[NodeCluster]:
    """Run a control plane with a real node; skip where none can run, by name."""
    with running_node(pytestconfig, ASSETS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def operator(node_cluster: NodeCluster, request: pytest.FixtureRequest) -> Iterator[OperatorProcess]:
    """The operator of a module's tests, with the module's OPERATOR_SETTINGS."""
    settings = getattr(request.module, "OPERATOR_SETTINGS", {})
    node_cluster.release_lease()
    identity = request.module.__name__.rpartition(".")[2].replace("_", "-")
    with node_cluster.operator(identity, **settings).running() as process:
        yield process
        assert process.terminate() == 0, process.log()
        assert "Traceback" not in process.log()


_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of 30,000 random weights, whose steps take milliseconds."""
    from trainer.tiny import make_model

    folder = tmp_path_factory.mktemp("tiny-models")
    make_model(folder / "bert")
    for path in (folder, folder / "bert" / "model.safetensors"):  # pods do not run as root
        path.chmod(0o755)
    return folder


@pytest.fixture
def team(node_cluster: NodeCluster, tmp_path: Path, tiny_models: Path) -> Iterator[Team]:
    """A namespace of the test's own, with volumes; at the end its pods leave the node."""
    made = Team.make(node_cluster, f"team-{next(_NUMBERS)}", tmp_path, ASSETS, tiny_models)
    yield made
    made.delete()
