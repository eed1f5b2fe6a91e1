"""Jobs that are suspended or deleted on a real node while they train."""

from __future__ import annotations

import pytest

from e2e.jobs import END_SECONDS, START_SECONDS, Team
from testbed.client import eventually
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS = 4000
# So rarely that the only checkpoint is the one that SIGTERM asks for.
NO_CHECKPOINTS = {"everySteps": 1_000_000}


def test_suspended_job_saves_and_goes_on_where_it_stopped(team: Team, operator: OperatorProcess) -> None:
    uid = team.apply("paused", training={"maxSteps": STEPS, "batchSize": 8}, checkpoint=NO_CHECKPOINTS)
    team.wait_for_step(operator, "paused", 10)
    team.suspend("paused", True)
    team.namespace.until("paused", "Suspended", "SuspendedByUser", seconds=START_SECONDS)
    eventually(lambda: not team.namespace.pods("paused"), "the trainer has stopped", START_SECONDS)
    [stopped_at] = team.checkpoints(uid)
    assert 10 <= stopped_at < STEPS
    assert team.namespace.job("paused")["status"]["phase"] == "Suspended"

    team.suspend("paused", False)
    team.namespace.until("paused", "Complete", seconds=START_SECONDS + END_SECONDS)
    assert f"resumed from the checkpoint at step {stopped_at} of {STEPS}" in team.notes(uid)
    assert f"resumed from the checkpoint at step {stopped_at}" in team.kubectl("logs", "job/paused")
    status = team.namespace.job("paused")["status"]
    assert status["result"]["steps"] == STEPS
    assert status.get("restarts", 0) == 0


def test_job_deleted_while_it_trains_leaves_its_volumes_and_nothing_else(team: Team, operator: OperatorProcess) -> None:
    uid = team.apply("unwanted", training={"maxSteps": 1_000_000, "batchSize": 8}, checkpoint={"everySteps": 5})
    team.wait_for_step(operator, "unwanted", 6)
    team.kubectl("delete", "ftj/unwanted", "--timeout=60s")
    team.until_empty()
    assert team.metric(operator, "unwanted", "finetune_job_steps_done") is None
    claims = team.kubectl("get", "persistentvolumeclaims", "--output=name").split()
    assert claims == [f"persistentvolumeclaim/{name}" for name in ("base-models", "data", "models", "tiny-models")]
    assert team.checkpoints(uid)
