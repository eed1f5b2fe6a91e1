"""The operator killed, cut off and left without an API server in the middle of things: every job still ends well."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from http.client import HTTPException

import pytest

from operator_jobs import COMPLETE, job, pod_token, report, report_path, run_to_completion
from testbed.client import Object, RequestError, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess
from testbed.proxy import Proxy

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

Start = Callable[..., AbstractContextManager[OperatorProcess]]
KILLS = 10
STATUS_SECONDS = 60
SEED = 20261125


class Workload:
    """A stream of jobs whose pods are run and ended while the operator comes and goes."""

    def __init__(self, cluster: Cluster, namespace: Namespace) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.jobs: dict[str, str] = {}
        """UID of each job."""
        self.children: set[tuple[str, str]] = set()
        """Every (name, UID) of a Job ever seen."""
        self.most_pods: dict[str, int] = {}
        """The most pods seen living at once, by job."""
        self._stop = threading.Event()
        self._random = random.Random(SEED)

    @contextmanager
    def running(self) -> Iterator[Workload]:
        """New jobs every second, and all pods taken a step further, for as long as the with block."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def settle(self) -> None:
        """Run and end what is left, until every job is Complete."""
        deadline = time.monotonic() + STATUS_SECONDS
        while time.monotonic() < deadline and not all(self.is_complete(name) for name in self.jobs):
            self._step()
            time.sleep(0.2)

    def is_complete(self, name: str) -> bool:
        return str(self.namespace.job(name).get("status", {}).get("phase")) == "Complete"

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(0.2):
            with suppress(OSError, HTTPException, RequestError):  # the API server may be away for a moment
                if time.monotonic() - started > len(self.jobs):
                    self._add_job(f"job-{len(self.jobs)}")
                self._step()

    def _add_job(self, name: str) -> None:
        with suppress(RequestError):  # it is there already when only the answer to an earlier try was lost
            self.namespace.apply(job(), name)
        self.jobs[name] = self.namespace.job(name)["metadata"]["uid"]

    def _step(self) -> None:
        """Look at everything, and take some pods further."""
        client, namespace = self.cluster.client, self.namespace
        self.children |= {(o["metadata"]["name"], o["metadata"]["uid"]) for o in client.items(namespace.child_path())}
        for name in self.jobs:
            pods = [pod for pod in namespace.pods(name) if pod["status"]["phase"] in ("Pending", "Running")]
            self.most_pods[name] = max(self.most_pods.get(name, 0), len(pods))
            for pod in pods:
                if "nodeName" in pod["spec"] and self._random.random() < 0.5:
                    self._take_further(pod)

    def _take_further(self, pod: Object) -> None:
        kubelet = self.cluster.kubelet
        try:
            if pod["status"]["phase"] == "Pending":
                kubelet.run(pod)
            else:
                kubelet.end(pod, 0, message=COMPLETE)
        except RequestError:
            return  # gone meanwhile


def assert_every_job_ended_well_and_once(workload: Workload) -> None:
    """Each Complete with its result, by one Job of one UID and one pod."""
    namespace = workload.namespace
    for name, uid in workload.jobs.items():
        found = namespace.job(name)
        assert found["metadata"]["uid"] == uid
        assert found["status"]["phase"] == "Complete", (name, found["status"])
        assert found["status"]["result"]["after"] == {"accuracy": "0.75"}
        assert [pod["status"]["phase"] for pod in namespace.pods(name)] == ["Succeeded"]
        assert workload.most_pods[name] <= 1
    assert sorted(name for name, _ in workload.children) == sorted(workload.jobs), "one Job each, never a second UID"


def test_operator_killed_at_ten_random_moments_loses_and_doubles_nothing(
    cluster: Cluster, namespace: Namespace
) -> None:
    cluster.release_lease()
    operator = OperatorProcess(cluster.server, "mortal")
    moments = random.Random(SEED)
    workload = Workload(cluster, namespace)
    with workload.running():
        for _ in range(KILLS):
            with operator.running(leading=False):
                time.sleep(moments.uniform(0.0, 2.5))
                assert "Traceback" not in operator.log()
                operator.kill()
    with operator.running():
        workload.settle()
        assert_every_job_ended_well_and_once(workload)
        assert len(workload.jobs) >= KILLS
        assert operator.terminate() == 0


def test_api_server_that_is_killed_and_started_anew_loses_nothing(cluster: Cluster, namespace: Namespace) -> None:
    cluster.release_lease()
    operator = OperatorProcess(cluster.server, "witness")
    workload = Workload(cluster, namespace)
    with operator.running():
        with workload.running():
            time.sleep(3)
            cluster.server.restart()
            time.sleep(3)
        workload.settle()
        assert_every_job_ended_well_and_once(workload)
        assert len(workload.jobs) >= 3
        assert operator.terminate() == 0, "it was never started anew"
        assert "Traceback" not in operator.log()


def test_job_changed_and_deleted_while_no_operator_runs_is_put_right_by_the_next(
    cluster: Cluster, namespace: Namespace, start_operator: Start
) -> None:
    cluster.release_lease()
    names = ("held", "deleted", "ended", "made-again")
    with start_operator("before") as before:
        for name in names:
            namespace.apply(job(), name)
            cluster.kubelet.run(namespace.bound_pod(name))
            namespace.until(name, "Running")
        before.kill()
    old = namespace.child("made-again")["metadata"]["uid"]
    cluster.client.patch(namespace.job_path("held"), {"spec": {"suspend": True}})
    cluster.client.delete(namespace.job_path("deleted"))
    cluster.kubelet.end(namespace.bound_pod("ended"), 0, message=COMPLETE)
    cluster.client.delete(namespace.job_path("made-again"))
    namespace.apply(job(), "made-again")
    cluster.release_lease()
    with start_operator("after"):
        namespace.until("held", "Suspended")
        namespace.until("ended", "Complete")
        eventually(lambda: not namespace.pods("held"), "the held job's pod is stopped")
        eventually(lambda: not namespace.pods("deleted"), "the deleted job's pod is gone")
        another = lambda: namespace.child("made-again")["metadata"]["uid"] != old  # noqa: E731
        eventually(another, "the job under the old name has a Job of its own", 60)
        run_to_completion(cluster, namespace, "made-again")


def test_last_report_of_a_plain_trainer_keeps_its_meaning_over_a_restart(
    cluster: Cluster, namespace: Namespace, start_operator: Start
) -> None:
    """Transformers' last report says 100 % and not of how many steps; that was said before the restart."""
    cluster.release_lease()
    namespace.apply(job(), "plain")
    with start_operator("before", resync_seconds=1) as before:
        pod = namespace.bound_pod("plain")
        cluster.kubelet.run(pod)
        namespace.until("plain", "Running")
        token, path = pod_token(cluster, namespace, pod), report_path(namespace, "plain")
        assert before.report(path, report(40, 200), token) == 200
        eventually(lambda: "progress" in namespace.job("plain")["status"], "the progress in the status")
        before.kill()
    cluster.release_lease()
    with start_operator("after") as after:
        last = {"progressPercentage": 100, "lastUpdatedTime": "2026-01-01T00:00:00Z"}
        assert after.report(path, json.dumps({"trainerStatus": last}).encode(), token) == 200
        assert after.metric("finetune_job_steps_done", namespace=namespace.name) == 200


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    with Proxy(cluster.server).running() as running:
        yield running


def test_watches_that_are_cut_are_taken_up_again_without_a_gap(
    cluster: Cluster, namespace: Namespace, start_operator: Start, proxy: Proxy
) -> None:
    cluster.release_lease()
    with start_operator("cut", api_url=proxy.url) as operator:
        for number in range(3):
            proxy.cut()
            namespace.apply(job(), f"cut-{number}")
            proxy.cut()
            run_to_completion(cluster, namespace, f"cut-{number}")
        assert operator.terminate() == 0
        assert "Traceback" not in operator.log()


def test_short_absence_of_the_api_server_is_waited_out(
    cluster: Cluster, namespace: Namespace, start_operator: Start, proxy: Proxy
) -> None:
    cluster.release_lease()
    with start_operator("patient", api_url=proxy.url) as operator:
        proxy.refuse(True)
        proxy.cut()
        namespace.apply(job(), "meanwhile")
        time.sleep(4)  # shorter than the lease's renewal deadline
        assert cluster.client.find(namespace.child_path("meanwhile")) is None
        proxy.refuse(False)
        run_to_completion(cluster, namespace, "meanwhile")
        assert operator.terminate() == 0
        assert "Traceback" not in operator.log()


def test_long_absence_of_the_api_server_ends_the_leader_and_the_next_waits_for_it(
    cluster: Cluster, namespace: Namespace, proxy: Proxy
) -> None:
    cluster.release_lease()
    operator = OperatorProcess(cluster.server, "cut-off", api_url=proxy.url, lease_seconds=6)
    with operator.running():
        proxy.refuse(True)
        proxy.cut()
        assert operator.wait(30) == 1
        assert "LostLease" in operator.log()
        assert "Traceback" not in operator.log()
    with operator.running(leading=False):  # as its Deployment would; the API server is still away
        namespace.apply(job(), "patient")
        time.sleep(3)
        assert operator.serves(), "it waits, and does not end again and again"
        proxy.refuse(False)
        operator.wait_until(operator.leads)
        run_to_completion(cluster, namespace, "patient")
        assert operator.terminate() == 0
