"""The life of a job on a real control plane, from `kubectl apply` to Complete, and what it costs in writes."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

import pytest

from operator_jobs import COMPLETE, events_of, job, pod_token, report, report_path, run_to_completion
from testbed.client import eventually
from testbed.cluster import Cluster, Namespace
from testbed.kubelet import NODE
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

OPERATOR_SETTINGS = {"resync_seconds": 2}
MAX_WRITES_PER_NEW_JOB = 2.2
LABEL = "finetune-operator.io/job-name"


def test_applied_job_runs_and_completes_and_kubectl_shows_it(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    manifest = {**job(), "metadata": {"name": "tuned", "namespace": namespace.name}}
    applied = cluster.server.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    assert applied.returncode == 0, applied.stderr
    pod = namespace.bound_pod("tuned")
    assert pod["spec"]["nodeName"] == NODE
    first = eventually(lambda: namespace.job("tuned").get("status"), "a first status")
    assert (first["observedGeneration"], first["phase"], first["strategy"]) == (1, "Pending", "Full")
    cluster.kubelet.run(pod)
    running = namespace.until("tuned", "Running")
    assert (running["reason"], running["observedGeneration"]) == ("PodsRunning", 1)
    token = pod_token(cluster, namespace, pod)
    assert operator.report(report_path(namespace, "tuned"), report(5, 20, eta=90, loss=0.5), token) == 200
    # The first report of all is written as soon as anything looks at the job; here it is the resync.
    eventually(lambda: "progress" in namespace.job("tuned")["status"], "the progress in the status")
    assert shown(cluster, namespace) == {
        "NAME": "tuned", "PHASE": "Running", "STRATEGY": "Full", "PROGRESS": "25", "LOSS": "0.5", "ETA": "90",
    }  # fmt: skip
    cluster.kubelet.end(pod, 0, message=COMPLETE)
    waited = cluster.server.kubectl(
        "wait", "--for=condition=Complete", "ftj/tuned", f"--namespace={namespace.name}", "--timeout=20s"
    )
    assert waited.returncode == 0, waited.stderr
    status = namespace.job("tuned")["status"]
    assert status["result"]["after"] == {"accuracy": "0.75"}
    assert status["result"] | COMPLETE["result"] == status["result"]
    assert status["progress"]["percent"] == 100
    assert status["startTime"] <= status["completionTime"]
    assert shown(cluster, namespace)["PHASE"] == "Complete"
    eventually(lambda: events_of(namespace, "tuned") == ["Running", "Complete"], "one Event a transition")


def shown(cluster: Cluster, namespace: Namespace) -> dict[str, str]:
    """What `kubectl get ftj` shows of the one job there is, without its age."""
    header, row = cluster.server.kubectl("get", "ftj", f"--namespace={namespace.name}").stdout.splitlines()
    columns = dict(zip(header.split(), row.split(), strict=False))
    assert header.split()[-1] == "AGE"
    columns.pop("AGE", "")
    return columns


def test_job_is_indexed_owned_labelled_and_allowed_under_the_restricted_standard(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    uid = namespace.apply(job(), "shaped")["metadata"]["uid"]
    pod = namespace.bound_pod("shaped")  # in a namespace that enforces the standard
    child = namespace.child("shaped")
    spec = child["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 1, 1)
    assert spec["podReplacementPolicy"] == "Failed"
    actions = [rule["action"] for rule in spec["podFailurePolicy"]["rules"]]
    assert actions == ["Ignore", "FailJob", "Ignore"]
    [owner] = child["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("FineTuneJob", "shaped", uid, True)
    for labels in (child["metadata"]["labels"], pod["metadata"]["labels"]):
        assert labels[LABEL] == "shaped"
        assert labels["app.kubernetes.io/managed-by"] == "finetune-operator"
    assert {field["manager"] for field in child["metadata"]["managedFields"]} >= {"finetune-operator"}


def test_new_jobs_cost_two_writes_each_and_nothing_at_rest(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    names = [f"many-{number}" for number in range(10)]
    for name in names:
        namespace.apply(job(), name)
    for name in names:
        namespace.bound_pod(name)
        namespace.until(name, "Reconciling")
    at_rest = quiet_since(cluster, operator, 2.0)
    writes = [write for write in cluster.server.audit.writes(operator.credential) if write.namespace == namespace.name]
    assert {write.resource for write in writes} == {"jobs", "finetunejobs/status"}
    assert len(writes) / len(names) <= MAX_WRITES_PER_NEW_JOB
    before = operator.metric("controller_runtime_reconcile_total")
    looked = lambda: operator.metric("controller_runtime_reconcile_total") >= before + 2 * len(names)  # noqa: E731
    eventually(looked, "two resyncs, each of which looks at every job", 60)
    assert not cluster.server.audit.writes(operator.credential, since=at_rest)


def quiet_since(cluster: Cluster, operator: OperatorProcess, seconds: float) -> datetime:
    """Wait until the operator has not written for so long; returns when that began."""

    def look() -> datetime | None:
        now = datetime.now(UTC)
        writes = cluster.server.audit.writes(operator.credential)
        last = writes[-1].time if writes else now.replace(year=2000)
        return now if (now - last).total_seconds() > seconds else None

    return eventually(look, "no write any more")


def test_complete_jobs_cost_nothing_when_the_operator_starts_anew(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    for name in ("done", "held"):
        namespace.apply(job(), name)
    run_to_completion(cluster, namespace, "done")
    namespace.bound_pod("held")
    namespace.until("held", "Reconciling")
    quiet_since(cluster, operator, 2.0)
    started = datetime.now(UTC)
    assert operator.terminate() == 0
    with operator.running():
        eventually(lambda: operator.metric("controller_runtime_reconcile_total") >= 2, "every job looked at")
        time.sleep(1)
        assert not cluster.server.audit.writes(operator.credential, since=started)
        assert operator.terminate() == 0
