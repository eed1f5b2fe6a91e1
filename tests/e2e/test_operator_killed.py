"""The operator killed again and again while a job trains: the job does not notice."""

from __future__ import annotations

import random
import time

import pytest

from e2e.jobs import END_SECONDS, Team
from testbed.client import Object, eventually
from testbed.node import NodeCluster

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

KILLS = 10
STEPS = 10_000
SETTLED_SECONDS = 60.0


def test_operator_killed_at_ten_random_moments_loses_and_doubles_nothing(node_cluster: NodeCluster, team: Team) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    node_cluster.release_lease()
    operator = node_cluster.operator("killed")
    pods: set[str] = set()
    children: set[str] = set()

    def look() -> list[Object]:
        found = team.namespace.pods("steady")
        pods.update(pod["metadata"]["uid"] for pod in found)
        children.update(child["metadata"]["uid"] for child in team.cluster.client.items(team.namespace.child_path()))
        return found

    team.apply("steady", training={"maxSteps": STEPS, "batchSize": 8})
    for _ in range(KILLS):
        # Not until it leads: a moment may be one at which it has only begun to.
        with operator.running(leading=False):
            time.sleep(moments.uniform(0, 3))
            look()
            operator.kill()
    with operator.running():
        assert team.namespace.job("steady")["status"]["phase"] == "Running", "the job outlasts the kills"
        eventually(lambda: look()[0]["status"]["phase"] == "Succeeded", "the trainer's end", END_SECONDS)
        team.namespace.until("steady", "Complete", seconds=SETTLED_SECONDS)
        assert team.namespace.job("steady")["status"]["result"]["steps"] == STEPS
        look()
        assert operator.terminate() == 0, operator.log()
    assert len(children) == 1
    assert len(pods) == 1
