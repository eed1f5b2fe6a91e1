"""An operator that is set to an image that is nowhere: the job says so, and waits."""

from __future__ import annotations

import pytest

from e2e.jobs import START_SECONDS, Team
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

IMAGE = "localhost/absent:1"
OPERATOR_SETTINGS = {"trainer_image": IMAGE}


def test_image_that_does_not_exist_is_image_pull_failed(team: Team, operator: OperatorProcess) -> None:
    team.apply("waiting")
    condition = team.namespace.until("waiting", "Running", "ImagePullFailed", status="False", seconds=START_SECONDS)
    assert IMAGE in condition["message"]
    assert team.namespace.job("waiting")["status"]["phase"] == "Pending"
