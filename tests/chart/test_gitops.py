"""What Argo CD makes of a job, by the Lua it is given. Flux and kpt need none: their rules are in tests/unit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from lupa import lua51

from chart.rendering import MANIFESTS
from finetune_api.v1alpha1.status import FineTuneJobStatus, Phase
from finetune_operator.plan.conditions import merge
from finetune_operator.plan.status import Observation, verdicts
from status_samples import full_status

HEALTH = MANIFESTS / "argocd" / "health.lua"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MESSAGE = "why, in words"

Object = dict[str, Any]


def job(phase: Phase | None, *, generation: int = 1, observed: int = 1, **status: Any) -> Object:
    """A job as the API server has it in a phase: the conditions are the operator's own."""
    found: Object = {"metadata": {"name": "tuned", "generation": generation}, "spec": {}}
    if phase is not None:
        conditions = merge((), verdicts(Observation(phase, "Because", MESSAGE)), observed, NOW)
        written = FineTuneJobStatus(observed_generation=observed, conditions=conditions, phase=phase)
        found["status"] = {**written.model_dump(mode="json", by_alias=True, exclude_none=True), **status}
    return found


def argo(manifest: Object) -> tuple[str, str]:
    """Status and message, by the script, with nothing of Lua that Argo CD does not load."""
    lua = lua51.LuaRuntime(register_eval=False)
    for library in ("string", "math", "io", "os", "debug", "coroutine", "python", "require", "dofile", "loadfile"):
        lua.globals()[library] = None
    lua.globals()["obj"] = lua.table_from(manifest, recursive=True)
    health = lua.execute(HEALTH.read_text())
    return health["status"], health["message"]


@pytest.mark.parametrize(
    ("phase", "health"),
    [
        (Phase.PENDING, "Progressing"),
        (Phase.QUEUED, "Progressing"),
        (Phase.RUNNING, "Progressing"),
        (Phase.SUSPENDED, "Suspended"),
        (Phase.COMPLETE, "Healthy"),
        (Phase.FAILED, "Degraded"),
    ],
)
def test_every_phase(phase: Phase, health: str) -> None:
    assert argo(job(phase)) == (health, f"Because: {MESSAGE}")


def test_every_phase_is_in_the_table() -> None:
    assert {mark.args[1][row][0] for mark in test_every_phase.pytestmark for row in range(len(mark.args[1]))} == set(
        Phase
    )


@pytest.mark.parametrize("phase", Phase)
def test_a_change_that_is_not_seen_yet_is_progress(phase: Phase) -> None:
    stale = job(phase, generation=2, observed=1)
    assert argo(stale) == ("Progressing", "the operator has not seen the change yet")


@pytest.mark.parametrize("status", [None, {}, {"observedGeneration": 1}])
def test_a_job_that_nobody_has_seen_is_progress(status: Object | None) -> None:
    unseen = job(None)
    if status is not None:
        unseen["status"] = status
    assert argo(unseen) == ("Progressing", "the operator has not seen the job yet")


def test_a_running_job_says_how_far_it_is() -> None:
    status = full_status().model_dump(mode="json", by_alias=True, exclude_none=True)
    assert argo({"metadata": {"generation": 1}, "status": status}) == ("Progressing", "step 50 of 100, loss 0.25")


def test_a_reason_without_words_stands_alone() -> None:
    silent = job(Phase.SUSPENDED)
    for condition in silent["status"]["conditions"]:
        condition["message"] = ""
    assert argo(silent) == ("Suspended", "Because")
