"""The operator's rights over a whole session on a real node: every one was used, and none was missing.

It runs after all other modules, whose pods and requests it judges too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from account_rights import NOT_REQUESTED, granted, refused, table, used
from e2e.jobs import ASSETS, END_SECONDS, START_SECONDS, TRAINER_USER, Team
from rights_in_use import delete_a_queued_job, judge_a_scrape, meet_a_foreign_job
from testbed.client import eventually
from testbed.node import NodeCluster
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

CLAIM = "own"
LARGE = {"gpusPerNode": 0, "cpu": "1000"}
"""No node has that much: pods are made, and go at once when they are to."""


@pytest.fixture(scope="module")
def everything(
    node_cluster: NodeCluster, operator: OperatorProcess, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    """Every kind of thing that the operator does, at least once."""
    team = Team.make(node_cluster, "rights", tmp_path_factory.mktemp("rights"), ASSETS, tiny_models)
    expire(team, tmp_path_factory.mktemp("own"))
    suspend(team)
    rendezvous(team)
    delete_a_queued_job(team.namespace, team.apply)
    meet_a_foreign_job(team.namespace, team.apply)
    judge_a_scrape(team.namespace, node_cluster.operator)
    yield team
    team.delete()


def expire(team: Team, folder: Path) -> None:
    """A job makes its claim, trains, reports, ends, and is deleted after its time to live."""
    os.chown(folder, TRAINER_USER, TRAINER_USER)
    team.namespace.volume(CLAIM, make_claim=False, folder=str(folder))
    output = {"uri": f"pvc://{CLAIM}/tuned", "createClaim": {"size": "1Gi"}}
    team.apply("brief", output=output, ttlSecondsAfterFinished=1, training={"maxSteps": 20, "batchSize": 8})
    gone = lambda: team.cluster.client.find(team.namespace.job_path("brief")) is None  # noqa: E731
    eventually(gone, "the job is deleted after its time to live", START_SECONDS + END_SECONDS)
    assert list(folder.glob("tuned/**/*.safetensors"))


def suspend(team: Team) -> None:
    team.apply("held", resources=LARGE)
    eventually(lambda: team.namespace.pods("held"), "the pod of the job to suspend")
    team.cluster.client.patch(team.namespace.job_path("held"), {"spec": {"suspend": True}})
    team.namespace.until("held", "Suspended", seconds=START_SECONDS)


def rendezvous(team: Team) -> None:
    """Nodes find each other by a Service."""
    team.apply("pair", resources={**LARGE, "nodes": 2})
    eventually(lambda: team.cluster.client.items(team.namespace.path("services")), "the Service of two nodes")
    team.kubectl("delete", "ftj/pair", "--timeout=60s")


@pytest.mark.usefixtures("everything")
def test_every_right_was_used(node_cluster: NodeCluster) -> None:
    rights, uses = granted(node_cluster.client), used(node_cluster.server.audit)
    assert rights
    assert not rights - uses.keys() - NOT_REQUESTED, table(rights, uses)


@pytest.mark.usefixtures("everything")
def test_no_right_was_missing(node_cluster: NodeCluster) -> None:
    assert not refused(node_cluster.server.audit)


def test_no_pod_and_no_job_broke_the_restricted_standard(node_cluster: NodeCluster, everything: Team) -> None:
    admissions = list(node_cluster.server.audit.admissions())
    pods = [each for each in admissions if each.resource == "pods" and each.namespace == everything.namespace.name]
    assert len(pods) >= 2
    assert not [each.violation for each in admissions if each.violation]
