"""The operator's rights over a whole session on a real node: every one was used, and none was missing.

It runs after all other modules, whose pods and requests it judges too.
"""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from account_rights import NOT_REQUESTED, granted, refused, requests, table, used
from e2e.jobs import ASSETS, END_SECONDS, START_SECONDS, TRAINER_USER, Team
from testbed.client import Object, eventually
from testbed.node import NodeCluster
from testbed.operator_process import NAMESPACE, OperatorProcess, service_account_token

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
    delete_a_queued_job(team)
    meet_a_foreign_job(team)
    be_scraped(node_cluster)
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


def delete_a_queued_job(team: Team) -> None:
    """A Job under a queue cannot be suspended by anybody but the queue: it is deleted."""
    team.apply("queued", queueName="research")
    team.namespace.until("queued", "Queued")
    team.cluster.client.patch(team.namespace.job_path("queued"), {"spec": {"suspend": True}})
    eventually(lambda: team.cluster.client.find(team.namespace.child_path("queued")) is None, "the queued Job is gone")


def meet_a_foreign_job(team: Team) -> None:
    """The Job is read, and so is the FineTuneJob when somebody else's writes make the operator's own conflict."""
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}}
    foreign: Object = {"metadata": {"name": "taken"}, "spec": {"suspend": True, "template": template}}
    team.cluster.client.create(team.namespace.child_path(), foreign)
    team.apply("taken")
    team.namespace.until("taken", "Reconciling", "ChildNameTaken")

    def conflicted() -> bool:
        for value in range(20):
            change = {"spec": {"ttlSecondsAfterFinished": value + 100}}
            team.cluster.client.patch(team.namespace.job_path("taken"), change)
        return any((r.verb, r.resource) == ("get", "finetunejobs") for r in requests(team.cluster.server.audit))

    eventually(conflicted, "a conflict", 30)


def be_scraped(cluster: NodeCluster) -> None:
    """Metrics over TLS ask the API server whose token it is, and what its user may: this one may not."""
    server = cluster.server
    certificate = {"metrics_certificate": str(server.ca_file), "metrics_key": str(server.key_file)}
    with cluster.operator("scraped", **certificate).running(leading=False) as replica:
        token = service_account_token(server, account="default", namespace=NAMESPACE)
        url = f"https://{server.address}:{replica.metrics_port}/metrics"
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=server.ca_file))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            opener.open(request, timeout=10)


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
