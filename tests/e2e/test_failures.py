"""Jobs that fail on a real node say why, in one word, and only as often as it takes."""

from __future__ import annotations

import json

import pytest

from e2e.jobs import START_SECONDS, Team
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_bad_data_fails_the_job_after_exactly_one_pod(team: Team, operator: OperatorProcess) -> None:
    team.write_rows("train.jsonl", [json.dumps({"text": "no label"})] * 20)
    team.apply("unlabelled", backoffLimit=3)
    failed = team.namespace.until("unlabelled", "Failed", "DataInvalid", seconds=START_SECONDS)
    assert "label" in failed["message"]
    assert len(team.namespace.pods("unlabelled")) == 1
    assert team.namespace.child("unlabelled")["status"]["failed"] == 1


def test_more_memory_than_the_limit_is_out_of_memory(team: Team, operator: OperatorProcess) -> None:
    team.apply("large", resources={"gpusPerNode": 0, "memory": "160Mi"}, backoffLimit=0)
    failed = team.namespace.until("large", "Failed", "OutOfMemory", seconds=START_SECONDS)
    assert "spec.resources.memory" in failed["message"]
    [pod] = team.namespace.pods("large")
    [container] = pod["status"]["containerStatuses"]
    assert container["state"]["terminated"]["reason"] == "OOMKilled"


def test_more_on_disk_than_the_limit_is_storage_full(team: Team, operator: OperatorProcess) -> None:
    resources = {"gpusPerNode": 0, "cpu": "1", "ephemeralStorage": "64Mi"}
    team.apply("wordy", resources=resources, backoffLimit=0, training={"maxSteps": 100_000, "batchSize": 8})
    team.wait_for_step(operator, "wordy", 1)
    [pod] = team.namespace.pods("wordy")
    write = "open('/tmp/large', 'wb').write(bytes(80 * 2**20))"
    team.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", write)
    failed = team.namespace.until("wordy", "Failed", "StorageFull", seconds=START_SECONDS)
    assert 'Usage of EmptyDir volume "scratch" exceeds the limit "64Mi"' in failed["message"]
    assert "spec.resources.ephemeralStorage" in failed["message"]
