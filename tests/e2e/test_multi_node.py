"""Jobs of two nodes on a real node: two pods that find each other by name, train together and leave one model."""

from __future__ import annotations

import pytest

from e2e.jobs import END_SECONDS, START_SECONDS, Team
from testbed.client import Object, eventually
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

STEPS = 300
LONG = 2000
"""Steps enough for something to happen meanwhile."""
TWO_NODES = {"nodes": 2, "gpusPerNode": 0, "cpu": "500m", "memory": "3Gi"}
# So rarely that the only checkpoint is the one that SIGTERM asks for.
NO_CHECKPOINTS = {"everySteps": 1_000_000}


def apply(team: Team, name: str, steps: int = STEPS, **spec: object) -> str:
    """A small job of two nodes; returns its UID."""
    return team.apply(name, resources=TWO_NODES, training={"maxSteps": steps, "batchSize": 8}, **spec)


def index_of(pod: Object) -> int:
    """Which node of the job it is."""
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def newest(team: Team, job: str) -> list[Object]:
    """The newest pod of each node, in their order."""
    pods = sorted(team.namespace.pods(job), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return [pod for _, pod in sorted({index_of(pod): pod for pod in pods}.items())]


def exit_codes(pods: list[Object]) -> list[int]:
    """How their trainers ended."""
    states = [pod["status"]["containerStatuses"][0]["state"] for pod in pods]
    return [int(state["terminated"]["exitCode"]) for state in states]


def services(team: Team) -> list[Object]:
    """Every Service of the namespace."""
    return team.cluster.client.items(team.namespace.path("services"))


def test_two_pods_train_one_model_together(team: Team, operator: OperatorProcess) -> None:
    from transformers import AutoModelForSequenceClassification

    uid = apply(team, "paired", strategy={"full": {}})
    team.namespace.until("paired", "Running", seconds=2 * START_SECONDS)
    assert [pod["status"]["phase"] for pod in newest(team, "paired")] == ["Running", "Running"]
    team.wait_for_step(operator, "paired", 1)
    team.namespace.until("paired", "Complete", seconds=END_SECONDS)
    pods = team.namespace.pods("paired")
    eventually(lambda: exit_codes(newest(team, "paired")) == [0, 0], "both trainers ended well", START_SECONDS)
    assert len(pods) == 2
    status = team.namespace.job("paired")["status"]
    assert status["result"]["steps"] == status["progress"]["step"] == STEPS
    assert status.get("restarts", 0) == 0
    [service] = services(team)
    assert service["spec"]["clusterIP"] == "None"

    model = AutoModelForSequenceClassification.from_pretrained(team.models / "paired")
    assert model.config.num_labels == 2
    # One of them wrote: every step is told once.
    steps = [event["step"] for event in team.events(uid) if event["event"] == "step"]
    assert steps == sorted(set(steps))


def test_pod_deleted_while_its_job_trains_stops_all_of_it_and_all_go_on_together(
    team: Team, operator: OperatorProcess
) -> None:
    """A trainer that is told to stop tells its peers: all save and stop well, and nothing is counted."""
    uid = apply(team, "shaken", LONG, backoffLimit=0, checkpoint={"everySteps": 20})
    team.wait_for_step(operator, "shaken", 30)
    first = {pod["metadata"]["uid"] for pod in team.namespace.pods("shaken")}
    _, other = newest(team, "shaken")
    team.kubectl("delete", f"pod/{other['metadata']['name']}", "--wait=false")
    team.namespace.until("shaken", "Running", status="False", seconds=START_SECONDS)
    team.namespace.until("shaken", "Complete", seconds=2 * START_SECONDS + END_SECONDS)
    status = team.namespace.job("shaken")["status"]
    assert status["result"]["steps"] == LONG
    assert status.get("restarts", 0) == 0
    assert not {pod["metadata"]["uid"] for pod in newest(team, "shaken")} & first, "both began anew"
    assert team.namespace.child("shaken")["status"].get("failed", 0) == 0, "nothing counts against the limit"
    assert [e["text"] for e in team.events(uid) if e["event"] == "note" and "resumed from the checkpoint" in e["text"]]


def test_node_that_is_killed_counts_once_and_its_peer_not_at_all(team: Team, operator: OperatorProcess) -> None:
    apply(team, "struck", LONG, backoffLimit=1, checkpoint={"everySteps": 20})
    team.wait_for_step(operator, "struck", 30)
    _, other = newest(team, "struck")
    team.kill_trainer(other)
    team.namespace.until("struck", "Running", status="False", seconds=START_SECONDS)
    team.namespace.until("struck", "Complete", seconds=2 * START_SECONDS + END_SECONDS)
    status = team.namespace.job("struck")["status"]
    assert status["result"]["steps"] == LONG
    assert status["restarts"] == 1
    assert team.namespace.child("struck")["status"]["failed"] == 1, "the killed one, and not its peer"


def test_suspended_job_of_two_nodes_goes_on_where_it_stopped(team: Team, operator: OperatorProcess) -> None:
    uid = apply(team, "paused", LONG, checkpoint=NO_CHECKPOINTS)
    team.wait_for_step(operator, "paused", 10)
    team.suspend("paused", True)
    team.namespace.until("paused", "Suspended", "SuspendedByUser", seconds=START_SECONDS)
    eventually(lambda: not team.namespace.pods("paused"), "the trainers have stopped", START_SECONDS)
    [stopped_at] = team.checkpoints(uid)
    assert 10 <= stopped_at < LONG

    team.suspend("paused", False)
    team.namespace.until("paused", "Complete", seconds=2 * START_SECONDS + END_SECONDS)
    assert f"resumed from the checkpoint at step {stopped_at} of {LONG}" in team.notes(uid)
    status = team.namespace.job("paused")["status"]
    assert status["result"]["steps"] == LONG
    assert status.get("restarts", 0) == 0


def test_deleted_job_of_two_nodes_leaves_its_volumes_and_nothing_else(team: Team, operator: OperatorProcess) -> None:
    apply(team, "unwanted", 1_000_000)
    team.wait_for_step(operator, "unwanted", 6)
    assert services(team)
    team.kubectl("delete", "ftj/unwanted", "--timeout=60s")
    team.until_empty()
