"""The quick start of docs/installing.md, from where the operator runs: files in, a sample, its model out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chart.documented import blocks, section, typed
from chart.rendering import ROOT
from chart.samples import few_rows
from e2e.jobs import START_SECONDS, TRAINER_USER
from finetune_trainer import storage
from testbed.client import eventually
from testbed.cluster import RESTRICTED, Namespace
from testbed.node import NodeCluster
from testbed.node_images import TRAINER_IMAGE
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FILES = Path("docs/examples/kind/files.yaml")
SHIPPED_IMAGE = "localhost/finetune-trainer:0.1.0"
CLAIMS = ("examples", "models")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder to type the commands in, after `make assets` that brought a few rows."""
    few_rows(tmp_path / "build" / "assets")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    (tmp_path / FILES.parent).mkdir(parents=True)
    text = (ROOT / FILES).read_text(encoding="utf-8")
    assert SHIPPED_IMAGE in text
    (tmp_path / FILES).write_text(text.replace(SHIPPED_IMAGE, TRAINER_IMAGE), encoding="utf-8")
    return tmp_path


@pytest.fixture
def default(node_cluster: NodeCluster, tmp_path: Path) -> Iterator[Namespace]:
    """The namespace, restricted, with empty volumes for the claims; kind has a StorageClass for that."""
    namespace = Namespace("default", node_cluster)
    node_cluster.client.patch("/api/v1/namespaces/default", {"metadata": {"labels": RESTRICTED}})
    for claim in CLAIMS:
        folder = tmp_path / "volumes" / claim
        folder.mkdir(parents=True)
        os.chown(folder, TRAINER_USER, TRAINER_USER)
        namespace.volume(claim, make_claim=False, folder=str(folder))
    yield namespace
    node_cluster.server.kubectl("delete", "finetunejob,pod", "--all", "--namespace=default")
    eventually(lambda: not node_cluster.client.items(namespace.path("pods")), "no pods", START_SECONDS)
    node_cluster.server.kubectl("delete", "pvc", *CLAIMS, "--namespace=default")
    node_cluster.server.kubectl("delete", "pv", *(f"default-{claim}" for claim in CLAIMS))


def test_the_quick_start_ends_with_a_model(
    node_cluster: NodeCluster, default: Namespace, operator: OperatorProcess, checkout: Path
) -> None:
    [_cluster, sample] = blocks(section("installing.md", "Quick start with kind"), "sh")
    said = typed(sample, node_cluster.server, checkout)
    assert "Complete" in said
    assert "pvc://models/sentiment-adapter" in said
    result = default.job("sentiment-adapter")["status"]["result"]
    brought = checkout / "build" / "models" / "sentiment-adapter"
    assert storage.digest(brought) == result["digest"]
