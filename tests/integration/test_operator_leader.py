"""Two replicas: one acts, another takes over when it is gone, and one that was stopped meanwhile writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime

import pytest

from operator_jobs import job, pod_token, report, report_path, run_to_completion
from testbed.client import eventually
from testbed.cluster import LEASE, Cluster, Namespace
from testbed.operator_process import OperatorProcess
from testbed.processes import HOST

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

Start = Callable[..., AbstractContextManager[OperatorProcess]]
TAKEOVER_SECONDS = 30
AT_ONCE_SECONDS = 5
"""A follower looks every two seconds, and then lists."""
SHORT = 5
"""Seconds of a lease that a test waits for."""


@pytest.fixture(autouse=True)
def free_lease(cluster: Cluster) -> None:
    cluster.release_lease()


def writes(cluster: Cluster, operator: OperatorProcess, since: datetime | None = None) -> int:
    return len(cluster.server.audit.writes(operator.credential, since=since))


def test_one_of_two_acts_and_when_it_is_killed_the_other_does_within_thirty_seconds(
    cluster: Cluster, namespace: Namespace, start_operator: Start
) -> None:
    with start_operator("first") as first, start_operator("second", leading=False) as second:
        namespace.apply(job(), "before")
        namespace.bound_pod("before")
        namespace.until("before", "Reconciling")
        # Elsewhere it may find what other tests left unfinished.
        here = [write for write in cluster.server.audit.writes(first.credential) if write.namespace == namespace.name]
        assert (len(here), writes(cluster, second)) == (2, 0)
        assert second.metric("leader_election_master_status") == 0
        assert second.health()[0] == 200
        first.kill()
        killed = time.monotonic()
        namespace.apply(job(), "after")
        namespace.child("after", TAKEOVER_SECONDS)
        assert time.monotonic() - killed < TAKEOVER_SECONDS
        for name in ("before", "after"):
            run_to_completion(cluster, namespace, name)
        assert len(namespace.pods("before")) == 1


def test_leader_that_is_told_to_stop_gives_the_lease_back_and_the_other_acts_at_once(
    cluster: Cluster, namespace: Namespace, start_operator: Start
) -> None:
    """A rolling update, with the lease of 15 s that it is by default."""
    with start_operator("old") as old, start_operator("new", leading=False) as new:
        assert old.terminate() == 0
        stopped = time.monotonic()
        assert holder(cluster) in ("", "new")
        namespace.apply(job(), "meanwhile")
        namespace.child("meanwhile")
        assert time.monotonic() - stopped < AT_ONCE_SECONDS
        assert holder(cluster) == "new"
        assert "lease is not given back" not in old.log()
        assert new.terminate() == 0
        assert holder(cluster) == ""


def test_leader_that_was_stopped_writes_nothing_when_it_wakes_up_and_starts_anew_as_a_follower(
    cluster: Cluster, namespace: Namespace, start_operator: Start
) -> None:
    lease = {"lease_seconds": SHORT, "resync_seconds": 1}
    with start_operator("sleeper", **lease) as sleeper, start_operator("waker", leading=False, **lease) as waker:
        names = [f"job-{number}" for number in range(3)]
        for name in names:
            namespace.apply(job(), name)
            namespace.child(name)
        sleeper.freeze()
        for name in names:  # what the sleeper will find to do when it wakes up, unless somebody else has done it
            cluster.client.patch(namespace.job_path(name), {"spec": {"suspend": True}})
        waker.wait_until(waker.leads)
        for name in names:
            namespace.until(name, "Suspended")
            cluster.client.patch(namespace.job_path(name), {"spec": {"suspend": False}})
        thawed = datetime.now(UTC)
        sleeper.thaw()
        assert sleeper.wait(30) == 1
        assert "LostLease" in sleeper.log()
        assert "Traceback" not in sleeper.log()
        assert writes(cluster, sleeper, since=thawed) == 0
        for name in names:
            run_to_completion(cluster, namespace, name)
        with sleeper.running(leading=False):  # as its Deployment would
            time.sleep(2)
            assert sleeper.metric("leader_election_master_status") == 0
            assert writes(cluster, sleeper, since=thawed) == 0
        assert holder(cluster) == "waker"


def holder(cluster: Cluster) -> str:
    return str(cluster.client.get(LEASE)["spec"].get("holderIdentity", ""))


def test_leader_stops_at_once_when_told_to_and_says_goodbye(cluster: Cluster, start_operator: Start) -> None:
    with start_operator("told", lease_seconds=SHORT) as told:
        started = time.monotonic()
        assert told.terminate() == 0
        assert time.monotonic() - started < 5
        assert "Traceback" not in told.log()


def test_follower_stops_at_once_when_told_to(cluster: Cluster, start_operator: Start) -> None:
    with start_operator("leading") as _, start_operator("waiting", leading=False) as waiting:
        assert waiting.terminate() == 0
        assert "Traceback" not in waiting.log()


def test_report_that_meets_a_follower_reaches_the_leader(
    cluster: Cluster, namespace: Namespace, start_operator: Start
) -> None:
    """A Service in front of both replicas sends it half of the reports."""
    reached = {"pod_ip": HOST, "lease_seconds": SHORT}
    with start_operator("leader", **reached) as leader, start_operator("relay", leading=False, **reached) as relay:
        namespace.apply(job(), "training")
        pod = namespace.bound_pod("training")
        cluster.kubelet.run(pod)
        namespace.until("training", "Running")
        token, path = pod_token(cluster, namespace, pod), report_path(namespace, "training")
        eventually(lambda: relay.report(path, report(1, loss=0.5), token) == 200, "the follower knows the leader")
        assert leader.metric("finetune_job_loss", namespace=namespace.name) == 0.5
        assert relay.report(path, report(1), "no token") == 401
        assert relay.report(path, b"{}", token) == 400
        assert relay.report("/v1/elsewhere/training", report(1), token) == 403
        leader.kill()
        status, said = relay.report_answer(path, report(2), token)
        assert (status, "report again later" in said) == (503, True)
        relay.wait_until(relay.leads)
        assert relay.report(path, report(3, loss=0.25), token) == 200
        assert relay.metric("finetune_job_loss", namespace=namespace.name) == 0.25


def test_follower_that_cannot_reach_the_leader_says_when_to_come_again(
    namespace: Namespace, start_operator: Start
) -> None:
    with start_operator("leader", lease_seconds=SHORT), start_operator("lonely", leading=False) as lonely:
        status, said = lonely.report_answer(report_path(namespace, "any"), report(1), "token")
        assert (status, "no replica leads now" in said) == (503, True)
