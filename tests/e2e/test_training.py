"""A job on a real node, from `kubectl apply` to a model that transformers loads."""

from __future__ import annotations

import pytest

from e2e.jobs import END_SECONDS, START_SECONDS, Team
from testbed.client import eventually
from testbed.operator_process import OperatorProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS = 100


@pytest.mark.security(1, 3)
def test_applied_job_trains_shows_its_progress_and_leaves_a_model_that_loads(
    team: Team, operator: OperatorProcess
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    uid = team.apply(
        "routed",
        model={"uri": "pvc://base-models/minilm"},
        strategy={"full": {}},
        training={"maxSteps": STEPS, "batchSize": 16},
    )
    team.namespace.until("routed", "Running", seconds=START_SECONDS)

    # While it runs, Prometheus and the resource both say how far it is.
    ratio = eventually(
        lambda: team.metric(operator, "routed", "finetune_job_progress_ratio"), "progress in /metrics", START_SECONDS
    )
    assert 0 < ratio < 1

    def steps_told() -> int:
        """By the status: the first report is of no step yet, the next comes after the interval."""
        found: int = team.namespace.job("routed")["status"].get("progress", {}).get("step", 0)
        return found

    assert 0 < eventually(steps_told, "steps in status", START_SECONDS) < STEPS
    assert team.namespace.condition("routed", "Complete")["status"] == "False"

    team.kubectl("wait", "--for=condition=Complete", "ftj/routed", f"--timeout={END_SECONDS:.0f}s")
    [pod] = team.namespace.pods("routed")
    assert pod["status"]["phase"] == "Succeeded"
    status = team.namespace.job("routed")["status"]
    assert status["progress"]["step"] == status["result"]["steps"] == STEPS
    assert status["result"]["uri"] == "pvc://models/routed"
    assert team.metric(operator, "routed", "finetune_job_progress_ratio") == 1

    model = AutoModelForSequenceClassification.from_pretrained(team.models / "routed")
    tokenizer = AutoTokenizer.from_pretrained(team.models / "routed")
    logits = model(**tokenizer("what a lovely day", return_tensors="pt")).logits
    assert set(model.config.label2id) == {"negative", "positive"}
    assert logits.shape == (1, 2)
    assert next(event["when"] for event in team.events(uid) if event["event"] == "evaluation") == "before"
