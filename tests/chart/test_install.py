"""The chart on a real node: installed, a job trains, upgraded while one runs, uninstalled, and purged to nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chart.rendering import FOLDER, NAMESPACE, RELEASE, Chart
from e2e.jobs import END_SECONDS, START_SECONDS, Team
from testbed import node_images
from testbed.client import Object, eventually
from testbed.node import NodeCluster
from testbed.node_fixture import running_node
from trainer.tiny import make_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

ASSETS = Path(__file__).resolve().parents[2] / "build" / "assets"
ADDRESS = "10.96.0.50"
"""There is no DNS on the node."""
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io"


def image(name: str) -> Object:
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}


VALUES: Object = {
    "image": image(node_images.OPERATOR_IMAGE),
    "trainer": {"image": image(node_images.TRAINER_IMAGE)},
    "progress": {"url": f"https://{ADDRESS}:8443", "service": {"clusterIP": ADDRESS}},
    # The node has two CPUs, and trains on one of them.
    "resources": {"requests": {"cpu": "250m"}},
}


@pytest.fixture(scope="module")
def bare_cluster(pytestconfig: pytest.Config) -> Iterator[NodeCluster]:
    """A real node without the operator; skip where none can run, by name."""
    with running_node(pytestconfig, ASSETS, bare=True) as cluster:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        cluster.client.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
        yield cluster


@pytest.fixture(scope="module")
def team(bare_cluster: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A team's namespace with volumes."""
    tiny, folder = tmp_path_factory.mktemp("tiny-models"), tmp_path_factory.mktemp("team")
    make_model(tiny / "bert")
    for path in (tiny, tiny / "bert" / "model.safetensors"):  # pods do not run as root
        path.chmod(0o755)
    return Team.make(bare_cluster, "team", folder, ASSETS, tiny)


def helm(chart: Chart, cluster: NodeCluster, *arguments: str, values: Object | None = None) -> str:
    return chart.run(
        *arguments,
        f"--namespace={NAMESPACE}",
        *(["--values=-"] if values is not None else []),
        stdin=json.dumps(values or {}),
        kubeconfig=cluster.server.kubeconfig,
    )


def operators(cluster: NodeCluster) -> list[Object]:
    return cluster.client.items(f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name={RELEASE}")


def logs(cluster: NodeCluster) -> str:
    done = cluster.server.kubectl(
        "logs", f"--namespace={NAMESPACE}", "--selector=app.kubernetes.io/name=finetune-operator", "--prefix"
    )
    return done.stdout + done.stderr


def test_life_of_a_release(
    chart: Chart, bare_cluster: NodeCluster, team: Team, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test, because each part starts from what the one before leaves."""
    started = time.monotonic()
    helm(chart, bare_cluster, "install", RELEASE, str(FOLDER), "--wait", "--timeout=5m", values=VALUES)
    assert len(operators(bare_cluster)) == 2
    team.apply("first")
    first_step = eventually(lambda: _progress(team, "first"), "the first report", START_SECONDS + END_SECONDS)
    seconds = time.monotonic() - started
    with capsys.disabled():
        print(f"\nfrom helm install to the first job's step {first_step} in its status: {seconds:.0f} s")
    team.namespace.until("first", "Complete", seconds=END_SECONDS)
    assert "Traceback" not in logs(bare_cluster)

    _upgrade_while_a_job_runs(chart, bare_cluster, team)
    _uninstall(chart, bare_cluster, team)
    _purge(bare_cluster, team)


def _progress(team: Team, job: str) -> int:
    failed = team.namespace.condition(job, "Failed")
    assert failed.get("status") != "True", failed
    step: int = team.namespace.job(job).get("status", {}).get("progress", {}).get("step", 0)
    return step


def _upgrade_while_a_job_runs(chart: Chart, cluster: NodeCluster, team: Team) -> None:
    """The same pod trains on, the certificate stays, and its reports arrive at the new replicas."""
    team.apply("second", training={"maxSteps": 100_000, "batchSize": 8})
    eventually(lambda: _progress(team, "second"), "the second job's first report", START_SECONDS)
    pod = team.namespace.bound_pod("second")["metadata"]["uid"]
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-progress-tls"
    certificate = cluster.client.get(secret)["data"]
    before = {each["metadata"]["uid"] for each in operators(cluster)}

    helm(chart, cluster, "upgrade", RELEASE, str(FOLDER), "--wait", "--timeout=5m", values={**VALUES, "workers": 4})
    replaced = lambda: len(operators(cluster)) == 2 and not before & {p["metadata"]["uid"] for p in operators(cluster)}  # noqa: E731
    eventually(replaced, "both replicas are new", START_SECONDS)
    reached = _progress(team, "second")
    eventually(lambda: _progress(team, "second") > reached, "a report after the upgrade", START_SECONDS)
    assert team.namespace.bound_pod("second")["metadata"]["uid"] == pod
    assert team.namespace.job("second")["status"].get("restarts", 0) == 0
    assert cluster.client.get(secret)["data"] == certificate


def _uninstall(chart: Chart, cluster: NodeCluster, team: Team) -> None:
    """The jobs stay, and what trains goes on training; nothing of the operator is left but its Lease."""
    helm(chart, cluster, "uninstall", RELEASE, "--wait")
    eventually(lambda: not operators(cluster), "no operator", START_SECONDS)
    assert cluster.client.find(CRD) is not None
    assert {job["metadata"]["name"] for job in cluster.client.items(team.namespace.job_path())} == {"first", "second"}
    assert team.namespace.bound_pod("second")["status"]["phase"] == "Running"
    selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
    kinds = "deployments,services,secrets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,pdb"
    left = cluster.server.kubectl("get", kinds, "--all-namespaces", selector, "--output=name")
    assert left.stdout == ""
    assert left.returncode == 0, left.stderr


def _purge(cluster: NodeCluster, team: Team) -> None:
    """As documented, and no operator runs: jobs, their Jobs and pods go, and nothing waits for a finalizer."""
    for arguments in (
        ("delete", "finetunejobs", "--all", "--all-namespaces", "--timeout=120s"),
        ("delete", "crd", "finetunejobs.finetune-operator.io", "--timeout=60s"),
        ("delete", "namespace", NAMESPACE, "--timeout=120s"),
    ):
        done = cluster.server.kubectl(*arguments)
        assert done.returncode == 0, done.stderr
    assert cluster.client.find(CRD) is None
    for path in (team.namespace.child_path(), team.namespace.path("pods"), team.namespace.path("services")):
        eventually(lambda path=path: not cluster.client.items(path), path, START_SECONDS)  # type: ignore[misc]
    assert cluster.client.find(f"/api/v1/namespaces/{NAMESPACE}") is None
    assert cluster.client.items(team.namespace.path("persistentvolumeclaims"))
