"""Training pods on a real API server under the restricted Pod Security Standard, whatever a user writes."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from operator_jobs import AUDIENCE, job, pod_token
from testbed.client import Client, Object, RequestError, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import ACCOUNT, ROOT, OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("operator")]

SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
HOST = {"name": "host", "hostPath": {"path": "/"}}
PRIVILEGED = {"privileged": True, "runAsUser": 0, "procMount": "Unmasked", "capabilities": {"add": ["SYS_ADMIN"]}}
STRANGER = {"name": "stranger", "image": "stranger", "securityContext": PRIVILEGED}
SHAPES: dict[str, Any] = {
    "privileged": True,
    "securityContext": {**PRIVILEGED, "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "0"}]},
    "podSecurityContext": {"runAsUser": 0, "runAsNonRoot": False, "seccompProfile": {"type": "Unconfined"}},
    "runAsUser": 0,
    "capabilities": {"add": ["SYS_ADMIN"]},
    "procMount": "Unmasked",
    "sysctls": [{"name": "net.core.somaxconn", "value": "1"}],
    "hostPID": True,
    "hostIPC": True,
    "hostNetwork": True,
    "hostUsers": True,
    "hostAliases": [{"ip": "127.0.0.1", "hostnames": ["huggingface.co"]}],
    "shareProcessNamespace": True,
    "containers": [STRANGER],
    "initContainers": [STRANGER],
    "ephemeralContainers": [STRANGER],
    "volumes": [HOST],
    "volumeMounts": [{"name": "host", "mountPath": "/host"}],
    "hostPath": {"path": "/"},
    "nfs": {"server": "10.0.0.1", "path": "/"},
    "csi": {"driver": "secrets-store.csi.k8s.io"},
    "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]},
    "secret": {"secretName": "hidden"},
    "configMap": {"name": "hidden"},
    "serviceAccount": ACCOUNT,
    "serviceAccountName": ACCOUNT,
    "automountServiceAccountToken": True,
    "imagePullSecrets": [{"name": "hidden"}],
    "image": "stranger",
    "command": ["sh"],
    "args": ["-c", "id"],
    "env": [{"name": "LD_PRELOAD", "value": "/host/evil.so"}],
    "envFrom": [{"secretRef": {"name": "hidden"}}],
    "lifecycle": {"postStart": {"exec": {"command": ["sh"]}}},
    "nodeName": "played-node",
    "schedulerName": "stranger",
    "runtimeClassName": "stranger",
    "affinity": {},
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.1"]},
    "restartPolicy": "Always",
    "annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"},
    "template": {"spec": {"hostPID": True}},
    "podTemplate": {"spec": {"hostPID": True}},
    "namespace": "kube-system",
}
PLACES: dict[str, tuple[str | int, ...]] = {
    "spec": (),
    "spec.pod": ("pod",),
    "spec.resources": ("resources",),
    "spec.output": ("output",),
    "spec.output.createClaim": ("output", "createClaim"),
    "spec.model": ("model",),
    "spec.pod.tolerations[0]": ("pod", "tolerations", 0),
    "spec.pod.envFromSecrets[0]": ("pod", "envFromSecrets", 0),
}
MEANT_THERE = {"spec.pod.envFromSecrets[0]": {"secret"}}


def plain() -> Object:
    """A job that has something at every place."""
    pod = {
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "envFromSecrets": [{"name": "HF_TOKEN", "secret": "hub", "key": "token"}],
    }
    return job(output={"uri": "pvc://models/tuned", "createClaim": {"size": "1Gi"}}, pod=pod)


def with_shapes(manifest: Object, place: str, shapes: dict[str, Any]) -> Object:
    changed = copy.deepcopy(manifest)
    node = changed["spec"]
    for key in PLACES[place]:
        node = node[key]
    node |= shapes
    return changed


def shapes_at(place: str) -> dict[str, Any]:
    return {name: value for name, value in SHAPES.items() if name not in MEANT_THERE.get(place, set())}


@pytest.mark.security(2, 5, 11, 12)
@pytest.mark.parametrize("place", PLACES)
def test_every_field_that_would_shape_the_pod_is_refused_by_name_and_nothing_is_made(
    cluster: Cluster, namespace: Namespace, place: str
) -> None:
    for name, value in shapes_at(place).items():
        manifest = with_shapes(plain(), place, {name: value})
        manifest["metadata"] = {"name": "shaped"}
        with pytest.raises(RequestError, match=r"strict decoding error: unknown field") as refused:
            cluster.client.create(f"{namespace.job_path()}?fieldValidation=Strict", manifest)
        assert f'unknown field "{place}.{name}"' in str(refused.value)
    for path in (namespace.job_path(), namespace.child_path(), namespace.path("pods")):
        assert cluster.client.items(path) == []


@pytest.mark.security(2, 5, 11, 12)
def test_who_asks_for_no_validation_gets_the_very_same_pod(cluster: Cluster, namespace: Namespace) -> None:
    twin, shaped = plain(), plain()
    for place in PLACES:
        shaped = with_shapes(shaped, place, shapes_at(place))
    notes = {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined", "sidecar.istio.io/inject": "true"}
    twin["metadata"] = {"name": "twin-a"}
    shaped["metadata"] = {"name": "twin-b", "annotations": notes, "labels": {"a": "b"}}
    for manifest in (twin, shaped):
        cluster.client.create(f"{namespace.job_path()}?fieldValidation=Ignore", manifest)
    assert namespace.job("twin-b")["spec"] == namespace.job("twin-a")["spec"]
    assert comparable(first_pod(namespace, "twin-b"), "twin-b") == comparable(first_pod(namespace, "twin-a"), "twin-a")


def first_pod(namespace: Namespace, name: str) -> Object:
    return eventually(lambda: namespace.pods(name), f"the pod of {name}")[0]


def comparable(pod: Object, name: str) -> Any:
    """What a pod is but for its own names and times."""
    annotations = {key: value for key, value in pod["metadata"]["annotations"].items() if not key.endswith("/run")}
    labels = {key: value for key, value in pod["metadata"]["labels"].items() if not key.endswith("controller-uid")}
    spec = {key: value for key, value in pod["spec"].items() if key != "nodeName"}
    return json.loads(json.dumps([annotations, labels, spec]).replace(name, "NAME"))


@pytest.mark.security(2)
def test_a_running_job_cannot_be_given_another_shape(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "steady")
    before = namespace.child("steady")["spec"]["template"]
    generation = namespace.job("steady")["metadata"]["generation"]
    cluster.client.patch(f"{namespace.job_path('steady')}?fieldValidation=Ignore", {"spec": {"pod": SHAPES}})
    assert namespace.job("steady")["metadata"]["generation"] == generation
    assert namespace.child("steady")["spec"]["template"] == before


@pytest.mark.security(11)
@pytest.mark.parametrize(
    "label",
    ["finetune-operator.io/job-name", "app.kubernetes.io/name", "batch.kubernetes.io/controller-uid", "job-name",
     "kueue.x-k8s.io/queue-name", "security.k8s.io/exempt"],
)  # fmt: skip
def test_a_reserved_label_is_refused_by_the_api_server(cluster: Cluster, namespace: Namespace, label: str) -> None:
    with pytest.raises(RequestError, match=r"spec\.pod\.labels: .* are not for users"):
        namespace.apply(job(pod={"labels": {label: "x"}}), "labelled")


@pytest.mark.security(11)
def test_a_priority_class_of_the_system_is_refused_by_the_api_server(namespace: Namespace) -> None:
    with pytest.raises(RequestError, match=r"spec\.pod\.priorityClassName: .* are for the cluster's own pods"):
        namespace.apply(job(pod={"priorityClassName": "system-node-critical"}), "urgent")


@pytest.mark.security(4, 5, 12)
def test_a_training_pod_has_no_token_of_the_api_server_and_mounts_nothing_of_the_node(
    cluster: Cluster, namespace: Namespace
) -> None:
    namespace.volume("models")
    namespace.apply(job(output={"uri": "pvc://models/tuned"}), "bare")
    pod = namespace.bound_pod("bare")["spec"]
    assert (pod["automountServiceAccountToken"], pod["serviceAccountName"]) == (False, "default")
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"downwardAPI", "emptyDir", "persistentVolumeClaim", "projected"}
    claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
    assert [cluster.client.get(namespace.path("persistentvolumeclaims", name))["kind"] for name in claims] == [
        "PersistentVolumeClaim"
    ]
    sources = [source for each in pod["volumes"] for source in each.get("projected", {}).get("sources", ())]
    assert {kind for source in sources for kind in source} == {"serviceAccountToken", "downwardAPI"}
    tokens = [source["serviceAccountToken"] for source in sources if "serviceAccountToken" in source]
    assert [token["audience"] for token in tokens] == [AUDIENCE]
    mounts = [mount["mountPath"] for container in pod["containers"] for mount in container["volumeMounts"]]
    assert not [path for path in mounts if "serviceaccount" in path]


@pytest.mark.security(4)
def test_a_pod_that_does_not_refuse_it_would_be_given_a_token_there(cluster: Cluster, namespace: Namespace) -> None:
    """That the test above could fail: the namespace's account gives its token to whoever does not say no."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "main", "image": "none", "securityContext": security}
    spec = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    made = cluster.client.create(namespace.path("pods"), {"metadata": {"name": "neighbour"}, "spec": spec})
    assert next(each["name"] for each in made["spec"]["volumes"]).startswith("kube-api-access")


@pytest.mark.security(4)
def test_the_token_for_progress_opens_nothing_of_the_api_server(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(job(), "reporting")
    pod = namespace.bound_pod("reporting")
    stolen = Client(cluster.server, pod_token(cluster, namespace, pod))
    for path in ("/api", namespace.path("pods"), namespace.path("secrets"), namespace.job_path("reporting")):
        with pytest.raises(RequestError) as refused:
            stolen.get(path)
        assert refused.value.status == 401
    with pytest.raises(RequestError) as refused:
        stolen.create(namespace.job_path(), {**job(), "metadata": {"name": "more"}})
    assert refused.value.status == 401


def violations(cluster: Cluster, namespace: Namespace) -> list[str]:
    """What the audit log says of pods and Jobs in the namespace that are not within the standard."""
    found = (each for each in cluster.server.audit.admissions() if each.namespace == namespace.name)
    return [each.violation for each in found if each.violation]


@pytest.mark.security(1)
def test_the_pods_of_every_sample_are_let_in_without_a_word(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    names = []
    for manifest in (each for path in SAMPLES for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))):
        namespace.apply(manifest, manifest["metadata"]["name"])
        names.append(manifest["metadata"]["name"])
    assert len(names) == len(set(names)) >= len(SAMPLES) > 5
    for name in names:
        assert first_pod(namespace, name)["spec"]["securityContext"]["runAsNonRoot"] is True
    assert violations(cluster, namespace) == []

    # And that the log would tell: a Job that is not within the standard is written down.
    loose = {"spec": {"restartPolicy": "Never", "hostPID": True, "containers": [{"name": "main", "image": "none"}]}}
    Client(cluster.server, operator.token).create(
        namespace.child_path(), {"metadata": {"name": "loose"}, "spec": {"suspend": True, "template": loose}}
    )
    assert "host namespaces" in eventually(lambda: violations(cluster, namespace), "the violation")[0]
