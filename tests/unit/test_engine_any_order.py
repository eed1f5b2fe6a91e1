"""Whatever order events come in, however many are lost or come twice, the world ends in the same state.

Restarts at any moment and failing requests included. Each job's fate says what its user wants in the end and what its
trainer does; the reference is the same fate with no trouble at all.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api.v1alpha1.status import Phase
from finetune_operator.cluster.client import FINE_TUNE_JOBS, JOBS, PODS
from memory_cluster import Object
from played_world import FATES
from simulation import ANSWERS, DELIVERIES, FAILS, FINE, LOST, REFUSES, UNANSWERED, Rest, Trouble, of_job, simulate

_MOMENTS = st.integers(1, 149)
_TROUBLES = st.builds(
    Trouble,
    deliveries=st.lists(st.sampled_from(DELIVERIES), min_size=1, max_size=12),
    answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=12),
    restarts=st.lists(_MOMENTS, max_size=3),
    changes_of_mind=st.lists(st.tuples(_MOMENTS, st.booleans()), max_size=3),
    starts_suspended=st.booleans(),
)
_CAST = st.lists(st.sampled_from(sorted(FATES)), min_size=1, max_size=3, unique=True)

State = dict[str, Any]


def state(rest: Rest, name: str) -> State:
    """What is to be the same: the status but for times and the numbers of pods, the Jobs, whether pods are at work.

    How far a job got before it was suspended is its history. A trainer that was killed left no last word, so the last
    report stands, and a restart may have lost it. Kueue's jobs are deleted to be suspended, which may be at the moment
    of their end. And what was suspended before it had a Job has none. A Job that is deleted at the end may have begun
    another try, or have been suspended before it came to that.
    """
    statuses = [_without_times(body) for body in of_job(rest, FINE_TUNE_JOBS, name)]
    for status in statuses:
        if status["phase"] == Phase.SUSPENDED or name == "killed":
            status.pop("progress", None)
            status.pop("startTime", None)
        if name == "writes-too-much":
            status.pop("restarts", None)
    jobs = of_job(rest, JOBS, name)
    owned = {job["metadata"]["uid"] for job in jobs}
    if FATES[name].phase == Phase.SUSPENDED:
        jobs = [job for job in jobs if not job["spec"]["suspend"]]
    pods = [pod for pod in rest.objects[PODS] if pod["metadata"]["ownerReferences"][0]["uid"] in owned]
    return {
        "statuses": statuses,
        "jobs": [_without_uid(job) for job in jobs] if name != "admitted" else None,
        "at work": sum(pod["status"]["phase"] in ("Pending", "Running") for pod in pods),
    }


def _without_uid(job: Object) -> State:
    ends = sorted(condition["type"] for condition in job.get("status", {}).get("conditions", ()))
    # What ended may have been suspended at the last moment, or not: nothing depends on it.
    suspend = job["spec"]["suspend"] if not ends else None
    made_for = {"shape": job["metadata"].get("annotations"), "tries": job["spec"].get("backoffLimit")}
    return {"suspend": suspend, "ends": ends, "is owned": "ownerReferences" in job["metadata"], **made_for}


def _without_times(body: Object) -> Object:
    assert body["status"]["observedGeneration"] == body["metadata"]["generation"]
    assert {c["observedGeneration"] for c in body["status"]["conditions"]} == {body["metadata"]["generation"]}
    return dict(_scrubbed(body["status"]))


def _scrubbed(value: Any) -> Any:
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"job-uid=[^`]+", "job-uid=U", re.sub(r"-(\d)-\d+", r"-\1-N", value))
    if not isinstance(value, dict):
        return value
    times = ("lastTransitionTime", "startTime", "completionTime", "podsMissingSince", "updated", "observedGeneration")
    return {key: "given" if key in times else _scrubbed(item) for key, item in value.items()}


@functools.cache
def undisturbed(name: str) -> State:
    """How a job ends when nothing goes wrong."""
    return state(simulate((name,)), name)


@pytest.mark.parametrize("name", FATES)
def test_undisturbed_every_job_meets_its_fate(name: str) -> None:
    found, fate = undisturbed(name), FATES[name]
    assert [status["phase"] for status in found["statuses"]] == ([fate.phase] if fate.phase else [])
    has_a_job = fate.phase not in (None, Phase.SUSPENDED) and name not in ("refused", "admitted", "writes-too-much")
    assert len(found["jobs"] or ()) == has_a_job
    for field in fate.at_first.keys() & {"backoffLimit"}:
        assert [job["tries"] for job in found["jobs"]] == [fate.spec[field]]


# The try that ended first is heard of, the one that completed is not yet, and the look for it fails.
_UNHEARD = Trouble(
    deliveries=[(25.0,)],
    answers=[FINE] * 7 + [FAILS],
    restarts=[],
    changes_of_mind=[(20, True)],
    starts_suspended=False,
)


# Of each node an earlier try that failed is heard of, and nothing of the last, when the Job's end is.
_SOON = (0.01,)
_EARLIER_TRIES = Trouble(
    deliveries=[_SOON, (), _SOON, _SOON, (), _SOON, _SOON, _SOON, _SOON, (), _SOON, _SOON],
    answers=["slow", "slow"],
    restarts=[],
    changes_of_mind=[(120, True), (78, False), (125, False)],
    starts_suspended=True,
)


@settings(max_examples=60, deadline=None)
@example(["evicted"], _UNHEARD)
@example(["by-turns", "two-nodes"], _EARLIER_TRIES)
@given(_CAST, _TROUBLES)
def test_any_order_and_any_loss_ends_in_the_same_state(cast: list[str], trouble: Trouble) -> None:
    rest = simulate(tuple(cast), trouble)
    assert rest.defects == []
    for name in cast:
        assert state(rest, name) == undisturbed(name)
    assert rest.writes_after_restart == 0
    fates = [FATES[name] for name in cast]
    # Kueue's jobs are deleted to be suspended, and others to be given what only a new Job takes on.
    is_remade = any("queueName" in fate.spec or fate.at_first for fate in fates)
    assert is_remade or set(rest.jobs_made.values()) <= {1}


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(deliveries=[LOST]),
        Trouble(deliveries=DELIVERIES),
        Trouble(answers=[FAILS]),
        Trouble(answers=[REFUSES]),
        Trouble(answers=[UNANSWERED]),
        Trouble(answers=ANSWERS),
        Trouble(restarts=range(1, 149, 7)),
        Trouble(changes_of_mind=[(second, bool(second % 2)) for second in range(1, 149, 5)]),
    ],
    ids=["no event", "some order", "no write", "no quota", "no answer", "some answers", "restarts", "changes of mind"],
)
def test_one_trouble_all_the_time_ends_in_the_same_state(trouble: Trouble) -> None:
    rest = simulate(tuple(FATES), trouble)
    assert rest.defects == []
    assert {name: state(rest, name) for name in FATES} == {name: undisturbed(name) for name in FATES}
    assert rest.writes_after_restart == 0
