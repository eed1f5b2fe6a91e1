"""The chart on a real node: installed, samples train, upgraded while a job runs, uninstalled, and purged to nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import pytest

from account_rights import refused, requests
from chart.network_probes import PORT, Probes
from chart.rendering import FOLDER, NAMESPACE, RELEASE, Chart
from chart.samples import APPROACHES, TEACHER, Samples
from e2e.jobs import ASSETS, START_SECONDS, Team
from finetune_operator.plan.names import JOB_NAME_LABEL
from testbed import node_images
from testbed.client import Object, eventually
from testbed.cluster import RESTRICTED
from testbed.node import NodeCluster
from testbed.node_fixture import running_node
from testbed.node_kubelet import NODE
from trainer.tiny import make_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune-operator.io"


def image(name: str) -> Object:
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "Never"}


def closed_values(cluster: NodeCluster, *namespaces: str) -> Object:
    """Images of the node's, and network policies for the operator and the training pods of some namespaces."""
    host, _, port = cluster.server.url.removeprefix("https://").rpartition(":")
    policies: Object = {
        "enabled": True,
        "apiServer": {"ports": [int(port)], "cidrs": [f"{host}/32"]},
        "dns": {"cidrs": [f"{cluster.slot.node_address}/32"]},
        "training": {"namespaces": list(namespaces)},
    }
    return {
        "image": image(node_images.OPERATOR_IMAGE),
        "trainer": {"image": image(node_images.TRAINER_IMAGE)},
        # The node may have two CPUs, and a sample asks for both.
        "resources": {"requests": {"cpu": "0"}},
        "networkPolicy": policies,
    }


@pytest.fixture(scope="module")
def bare_cluster(pytestconfig: pytest.Config) -> Iterator[NodeCluster]:
    """A real node without the operator; skip where none can run, by name."""
    with running_node(pytestconfig, ASSETS, bare=True) as cluster:
        cluster.client.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": RESTRICTED}})
        yield cluster


@pytest.fixture(scope="module")
def team(bare_cluster: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A team's namespace with volumes."""
    tiny, folder = tmp_path_factory.mktemp("tiny-models"), tmp_path_factory.mktemp("team")
    make_model(tiny / "bert")
    for path in (tiny, tiny / "bert" / "model.safetensors"):  # pods do not run as root
        path.chmod(0o755)
    return Team.make(bare_cluster, "team", folder, ASSETS, tiny)


@pytest.fixture(scope="module")
def samples(bare_cluster: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """A namespace for the samples."""
    return Samples.make(bare_cluster, "samples", tmp_path_factory.mktemp("samples"))


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


@pytest.mark.security(22)
def test_life_of_a_release(
    chart: Chart,
    bare_cluster: NodeCluster,
    team: Team,
    samples: Samples,
    record_property: Callable[[str, object], None],
) -> None:
    """One test, because each part starts from what the one before leaves.

    The samples are applied as they are; their volumes hold 64 rows to train on and 32 to judge by.
    """
    before, started = _objects(bare_cluster), datetime.now(UTC)
    closed = closed_values(bare_cluster, team.namespace.name, samples.namespace.name)
    helm(chart, bare_cluster, "install", RELEASE, str(FOLDER), "--wait", "--timeout=5m", values=closed)
    assert len(operators(bare_cluster)) == 2
    _complete_the_samples(samples)
    seconds = (samples.first_step() - started).total_seconds()
    record_property("from helm install to the first step of the first job", f"{seconds:.0f} s")

    _judge_the_network(bare_cluster, samples)
    _upgrade_while_a_job_runs(chart, bare_cluster, team, closed)
    assert "Traceback" not in logs(bare_cluster)
    _judge_the_audit_log(bare_cluster, samples)
    _uninstall(chart, bare_cluster, team, samples)
    _purge(bare_cluster, before)


def _complete_the_samples(samples: Samples) -> None:
    """One for each approach, and the teacher first, whose model the student learns from."""
    student = "distillation-student"
    others = [name for name in APPROACHES if name != student]
    samples.apply(TEACHER, *others)
    samples.complete(TEACHER)
    samples.apply(student)
    for name in APPROACHES:
        samples.complete(name)


def _progress(team: Team, job: str) -> int:
    failed = team.namespace.condition(job, "Failed")
    assert failed.get("status") != "True", failed
    step: int = team.namespace.job(job).get("status", {}).get("progress", {}).get("step", 0)
    return step


def _judge_the_network(cluster: NodeCluster, samples: Samples) -> None:
    """Training pods reach the operator, and nothing else of the cluster; nobody else reaches either."""
    probes, trainer, stranger = (
        Probes(cluster.client, samples.namespace.name),
        {JOB_NAME_LABEL: "probe"},
        {"app": "web"},
    )
    operator, reports = operators(cluster)[0]["status"]["podIP"], 8443
    assert probes.reaches(operator, reports, trainer)
    assert not probes.reaches(operator, reports, stranger)
    host, _, port = cluster.server.url.removeprefix("https://").rpartition(":")
    assert probes.reaches(host, int(port), stranger)
    assert not probes.reaches(host, int(port), trainer)
    with probes.listening(stranger) as address:
        assert not probes.reaches(address, PORT, trainer)
    with probes.listening(trainer) as address:
        assert not probes.reaches(address, PORT, stranger)


def _upgrade_while_a_job_runs(chart: Chart, cluster: NodeCluster, team: Team, closed: Object) -> None:
    """Upgraded and rolled back: the same pod trains on, the certificate stays, and new replicas get its reports."""
    team.apply("long", training={"maxSteps": 100_000, "batchSize": 8})
    eventually(lambda: _progress(team, "long"), "the job's first report", START_SECONDS)
    pod = team.namespace.bound_pod("long")["metadata"]["uid"]
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-tls"
    certificate = cluster.client.get(secret)["data"]

    upgrade, rollback = ("upgrade", RELEASE, str(FOLDER)), ("rollback", RELEASE)
    for command, given, workers in ((upgrade, {**closed, "workers": 4}, "4"), (rollback, None, "16")):
        _replace_the_replicas(chart, cluster, *command, values=given)
        assert {_setting(each, "FINETUNE_WORKERS") for each in operators(cluster)} == {workers}
        reached = _progress(team, "long")
        farther = partial(lambda step: _progress(team, "long") > step, reached)
        eventually(farther, f"a report after the {command[0]}", START_SECONDS)
        assert team.namespace.bound_pod("long")["metadata"]["uid"] == pod
        assert team.namespace.job("long")["status"].get("restarts", 0) == 0
        assert cluster.client.get(secret)["data"] == certificate


def _replace_the_replicas(chart: Chart, cluster: NodeCluster, *command: str, values: Object | None) -> None:
    before = {each["metadata"]["uid"] for each in operators(cluster)}
    helm(chart, cluster, *command, "--wait", "--timeout=5m", values=values)
    replaced = lambda: len(operators(cluster)) == 2 and not before & {p["metadata"]["uid"] for p in operators(cluster)}  # noqa: E731
    eventually(replaced, "both replicas are new", START_SECONDS)


def _setting(pod: Object, name: str) -> str:
    [value] = [entry["value"] for entry in pod["spec"]["containers"][0]["env"] if entry["name"] == name]
    return str(value)


def _judge_the_audit_log(cluster: NodeCluster, samples: Samples) -> None:
    """No pod broke the restricted standard, and the operator lacked no right."""
    audit = cluster.server.audit
    admissions = list(audit.admissions())
    made = {(each.namespace, each.resource) for each in admissions}
    assert made >= {(NAMESPACE, "pods"), (samples.namespace.name, "pods"), (samples.namespace.name, "jobs")}
    assert not [each.violation for each in admissions if each.violation]
    assert requests(audit)
    assert not refused(audit)


def _uninstall(chart: Chart, cluster: NodeCluster, team: Team, samples: Samples) -> None:
    """The jobs stay, and what trains goes on training; nothing of the operator is left but its Lease."""
    helm(chart, cluster, "uninstall", RELEASE, "--wait")
    eventually(lambda: not operators(cluster), "no operator", START_SECONDS)
    assert cluster.client.find(CRD) is not None
    jobs = cluster.client.items(samples.namespace.job_path()) + cluster.client.items(team.namespace.job_path())
    assert {job["metadata"]["name"] for job in jobs} == {TEACHER, *APPROACHES, "long"}
    assert team.namespace.bound_pod("long")["status"]["phase"] == "Running"
    selector = f"--selector=app.kubernetes.io/instance={RELEASE}"
    kinds = "deployments,services,secrets,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,pdb"
    left = cluster.server.kubectl("get", kinds, "--all-namespaces", selector, "--output=name")
    assert left.stdout == ""
    assert left.returncode == 0, left.stderr


def _purge(cluster: NodeCluster, before: set[str]) -> None:
    """As documented, and no operator runs: nothing waits for a finalizer, and 0 objects are left."""
    for arguments in (
        ("delete", "finetunejobs", "--all", "--all-namespaces", "--timeout=120s"),
        ("delete", "crd", "finetunejobs.finetune-operator.io", "--timeout=60s"),
        ("delete", "namespace", NAMESPACE, "--timeout=120s"),
    ):
        done = cluster.server.kubectl(*arguments)
        assert done.returncode == 0, done.stderr
    assert cluster.client.find(f"/api/v1/namespaces/{NAMESPACE}") is None
    with suppress(AssertionError):  # the next line tells what is left
        eventually(lambda: _objects(cluster) <= before, "only what was there before", START_SECONDS)
    left = _objects(cluster) - before
    assert left == set()
    assert {"PersistentVolumeClaim samples models", "PersistentVolumeClaim team models"} <= _objects(cluster)


def _objects(cluster: NodeCluster) -> set[str]:
    """Every object that there is, but the node's sign of life."""
    found = {f"{kind} {namespace} {name}" for namespace, kind, name in cluster.server.objects()}
    return found - {f"Lease kube-node-lease {NODE}"}
