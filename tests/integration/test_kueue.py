"""Jobs with a queueName under a real Kueue: admitted, kept waiting, preempted, suspended, moved and deleted."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator

import pytest

from operator_jobs import COMPLETE, job, run_to_completion
from testbed.binaries import Binaries
from testbed.client import Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.go_build import required_version
from testbed.kueue import MODULE, NAME, Kueue
from testbed.kueue_queue import Queue, make_flavor, quota, verdict, workload, workloads
from testbed.operator_process import ROOT, OperatorProcess

pytest_plugins = ["testbed.plugin", "testbed.kueue_fixture"]
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.usefixtures("operator")]

QUEUE = "research"
URGENT = "urgent"


@pytest.fixture(scope="module")
def cluster(control_plane: Binaries, kueue: Kueue) -> Iterator[Cluster]:
    """A cluster of this module's own: Kueue's webhooks would have a say in every other module's Jobs."""
    with Cluster.start(control_plane, beside=kueue.running) as started:
        make_flavor(started.client)
        yield started


@pytest.fixture
def queue(namespace: Namespace) -> Queue:
    """A queue with place for one pod."""
    return Queue.make(namespace, QUEUE, cpu=1)


def submit(namespace: Namespace, name: str, **spec: object) -> None:
    """A job whose pods take one CPU each, in the queue unless another is given."""
    namespace.apply(job(resources={"gpusPerNode": 0, "cpu": "1"}), name, **{"queueName": QUEUE, **spec})


def start(cluster: Cluster, namespace: Namespace, name: str) -> Object:
    """Wait until a job is admitted and its pod has a node, and have it run."""
    pod = namespace.bound_pod(name)
    cluster.kubelet.run(pod)
    namespace.until(name, "Running")
    return pod


def words_of_kueue(cluster: Cluster, message: str) -> str:
    """What the command says that a job's status leads to."""
    _, command, _ = message.split("`")
    done = cluster.server.kubectl(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for_words(cluster: Cluster, namespace: Namespace, name: str, words: str) -> None:
    """Wait until Kueue has judged a job that waits, and see that its status leads there."""
    message = namespace.until(name, "Queued", "WaitingForQueue")["message"]
    eventually(lambda: words in words_of_kueue(cluster, message), f"Kueue says {words!r}")


def test_job_is_admitted_though_a_finetunejob_owns_it_and_gives_its_place_back_at_the_end(
    cluster: Cluster, namespace: Namespace, queue: Queue
) -> None:
    submit(namespace, "tuned")
    start(cluster, namespace, "tuned")
    child, admitted = namespace.child("tuned"), workload(namespace, "tuned")
    assert child["metadata"]["ownerReferences"][0]["kind"] == "FineTuneJob"
    assert child["spec"]["suspend"] is False
    assert admitted is not None
    assert admitted["metadata"]["ownerReferences"][0]["uid"] == child["metadata"]["uid"]
    assert namespace.condition("tuned", "Queued")["status"] == "False"
    eventually(lambda: queue.used() == "1", "its CPU is given away")
    cluster.kubelet.end(namespace.bound_pod("tuned"), 0, message=COMPLETE)
    namespace.until("tuned", "Complete")
    eventually(lambda: verdict(namespace, "tuned", "Finished").get("reason") == "Succeeded", "Kueue sees its end")
    eventually(lambda: queue.used() == "0", "its CPU is free again")


def test_job_waits_while_the_quota_is_used_up_and_runs_when_another_ends_or_is_deleted(
    cluster: Cluster, namespace: Namespace, queue: Queue
) -> None:
    submit(namespace, "first")
    start(cluster, namespace, "first")
    for name in ("second", "third"):
        submit(namespace, name)
        wait_for_words(cluster, namespace, name, "insufficient unused quota for cpu in flavor any-node")
        assert not namespace.pods(name)
        time.sleep(1)  # Kueue goes by whole seconds: of two Workloads of one second either may be the next
    assert namespace.job("second")["status"]["phase"] == "Queued"
    cluster.kubelet.end(namespace.bound_pod("first"), 0, message=COMPLETE)
    namespace.until("first", "Complete")
    start(cluster, namespace, "second")
    assert namespace.job("third")["status"]["phase"] == "Queued"
    cluster.client.delete(namespace.job_path("second"))
    run_to_completion(cluster, namespace, "third")


def test_suspended_job_gives_its_place_back_and_waits_for_one_when_it_is_resumed(
    cluster: Cluster, namespace: Namespace, queue: Queue
) -> None:
    submit(namespace, "held")
    start(cluster, namespace, "held")
    cluster.client.patch(namespace.job_path("held"), {"spec": {"suspend": True}})
    namespace.until("held", "Suspended")
    eventually(lambda: not workloads(namespace), "Kueue knows nothing of it")
    submit(namespace, "other")
    start(cluster, namespace, "other")
    assert cluster.client.find(namespace.child_path("held")) is None
    cluster.client.patch(namespace.job_path("held"), {"spec": {"suspend": False}})
    wait_for_words(cluster, namespace, "held", "insufficient unused quota")
    cluster.kubelet.end(namespace.bound_pod("other"), 0, message=COMPLETE)
    run_to_completion(cluster, namespace, "held")
    assert namespace.job("held")["status"].get("restarts", 0) == 0


def test_preempted_job_waits_again_and_comes_back_without_a_retry(cluster: Cluster, namespace: Namespace) -> None:
    Queue.make(namespace, QUEUE, cpu=1, preemption={"withinClusterQueue": "LowerPriority"})
    cluster.client.create("/apis/scheduling.k8s.io/v1/priorityclasses", {"metadata": {"name": URGENT}, "value": 1000})
    submit(namespace, "patient", backoffLimit=0)  # one counted failure would fail it
    first = start(cluster, namespace, "patient")
    uid = namespace.child("patient")["metadata"]["uid"]
    submit(namespace, "urgent", pod={"priorityClassName": URGENT})
    namespace.until("patient", "Queued", "WaitingForQueue")
    wait_for_words(cluster, namespace, "patient", "Preempted to accommodate a workload")
    run_to_completion(cluster, namespace, "urgent")
    second = start(cluster, namespace, "patient")
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    assert namespace.child("patient")["metadata"]["uid"] == uid
    cluster.kubelet.end(second, 0, message=COMPLETE)
    namespace.until("patient", "Complete")
    assert namespace.job("patient")["status"].get("restarts", 0) == 0


def test_job_of_a_queue_that_is_drained_waits_until_the_queue_is_open_again(
    cluster: Cluster, namespace: Namespace, queue: Queue
) -> None:
    submit(namespace, "drained", backoffLimit=0)
    start(cluster, namespace, "drained")
    queue.change(stopPolicy="HoldAndDrain")
    wait_for_words(cluster, namespace, "drained", f"ClusterQueue {queue.cluster_name} is")
    eventually(lambda: queue.used() == "0", "its CPU is free")
    assert namespace.condition("drained", "Failed")["status"] == "False"
    queue.change(stopPolicy="None")
    run_to_completion(cluster, namespace, "drained")
    assert namespace.job("drained")["status"].get("restarts", 0) == 0


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_deleted_job_leaves_nothing_in_kueue(cluster: Cluster, namespace: Namespace, state: str) -> None:
    queue = Queue.make(namespace, QUEUE, cpu=1 if state == "running" else 0)
    submit(namespace, "gone")
    if state == "running":
        start(cluster, namespace, "gone")
    eventually(lambda: workload(namespace, "gone"), "its Workload")
    cluster.client.delete(namespace.job_path("gone"))
    eventually(lambda: not workloads(namespace), "its Workload is gone", 30)
    eventually(lambda: queue.used() == "0", "no CPU is given away")
    eventually(lambda: not namespace.pods("gone"), "its pods are gone")


def test_job_of_a_queue_that_is_not_there_waits_and_moves_to_the_one_it_is_then_given(
    cluster: Cluster, namespace: Namespace, queue: Queue
) -> None:
    submit(namespace, "mistyped", queueName="reserach")
    wait_for_words(cluster, namespace, "mistyped", "LocalQueue reserach doesn't exist")
    assert namespace.condition("mistyped", "Queued")["message"].startswith("waiting for admission by queue reserach;")
    assert namespace.condition("mistyped", "Failed")["status"] == "False"
    cluster.client.patch(namespace.job_path("mistyped"), {"spec": {"queueName": QUEUE}})
    run_to_completion(cluster, namespace, "mistyped")


def test_nodes_of_a_job_are_admitted_together_or_not_at_all(
    cluster: Cluster, namespace: Namespace, queue: Queue
) -> None:
    submit(
        namespace,
        "wide",
        resources={"gpusPerNode": 0, "cpu": "1", "nodes": 2},
        output={"uri": "pvc://models/wide"},
    )
    wait_for_words(cluster, namespace, "wide", "insufficient quota for cpu")
    assert not namespace.pods("wide")
    [waiting] = workloads(namespace)
    assert [pods["count"] for pods in waiting["spec"]["podSets"]] == [2]
    queue.change(**quota(cpu=2))
    eventually(lambda: len(namespace.pods("wide")) == 2, "a pod for each node")
    eventually(lambda: queue.used() == "2", "both are counted")


def test_job_without_a_queue_follows_the_default_queue_and_is_suspended_for_good(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    """Kueue labels what has no queue where a LocalQueue is named `default`."""
    Queue.make(namespace, "default", cpu=1)
    submit(namespace, "plain", queueName=None)
    start(cluster, namespace, "plain")
    assert namespace.child("plain")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "default"
    cluster.client.patch(namespace.job_path("plain"), {"spec": {"suspend": True}})
    submit(namespace, "other", queueName=None)
    start(cluster, namespace, "other")
    written = cluster.server.audit.writes(operator.credential)
    mine = [write.verb for write in written if (write.namespace, write.name) == (namespace.name, "plain")]
    assert [verb for verb in mine if verb != "patch"] == ["create", "delete"], "its Job is not made again"
    assert namespace.job("plain")["status"]["phase"] == "Suspended"
    cluster.client.patch(namespace.job_path("plain"), {"spec": {"suspend": False}})
    namespace.until("plain", "Queued")


def test_docs_name_the_version_and_their_queues_are_accepted(cluster: Cluster) -> None:
    text = (ROOT / "docs" / "operator.md").read_text(encoding="utf-8").partition("## Kueue\n")[2]
    assert f"Kueue {required_version(MODULE, NAME).removeprefix('v')}," in text
    example = text.partition("```yaml\n")[2].partition("```")[0]
    cluster.client.create("/api/v1/namespaces", {"metadata": {"name": "team-a"}})
    applied = cluster.server.kubectl("apply", "--dry-run=server", "--filename=-", stdin=example)
    assert applied.returncode == 0, applied.stderr
    kinds = [line.partition(".")[0] for line in applied.stdout.splitlines()]
    assert kinds == ["resourceflavor", "clusterqueue", "localqueue"]
