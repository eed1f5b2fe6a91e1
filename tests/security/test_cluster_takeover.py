"""Objects that have a child's name before the job does: none is adopted, changed or deleted, and the job says so."""

from __future__ import annotations

import pytest

from finetune_operator.plan import names
from operator_jobs import job
from testbed.client import Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.security(13)]

NAME = "squatted"
TEMPLATE = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}}
SPACE = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


def squat(cluster: Cluster, namespace: Namespace) -> dict[str, Object]:
    """Somebody else's objects under every name that a job's child might have; returns them by path."""
    ours: Object = {"metadata": {"name": NAME, "labels": names.labels(NAME)}}
    bodies = {
        namespace.child_path(): ours | {"spec": {"suspend": True, "template": TEMPLATE}},
        namespace.path("configmaps"): ours | {"data": {"run.json": "{}"}},
        namespace.path("services"): ours | {"spec": {"clusterIP": "None", "selector": {"app": "stranger"}}},
        namespace.path("persistentvolumeclaims"): ours | {"spec": SPACE},
    }
    for path, body in bodies.items():
        cluster.client.create(path, body)
    return {f"{path}/{NAME}": lasting(cluster.client.get(f"{path}/{NAME}")) for path in bodies}


def lasting(body: Object) -> Object:
    """What nobody but its owner would change."""
    metadata = {key: body["metadata"].get(key) for key in ("uid", "labels", "ownerReferences", "finalizers")}
    spec = {key: value for key, value in body.get("spec", {}).items() if key != "volumeName"}
    return {"metadata": metadata, "spec": spec, "data": body.get("data")}


def test_what_has_a_childs_name_is_left_alone_and_the_job_names_the_conflict(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    before = squat(cluster, namespace)
    output = {"uri": f"pvc://{NAME}/tuned", "createClaim": {"size": "5Gi"}}
    namespace.apply(job(output=output), NAME)
    conflict = namespace.until(NAME, "Reconciling", "ChildNameTaken")
    assert (
        f"a Job named {NAME} exists that is not this FineTuneJob's; delete it, or use another name"
        in conflict["message"]
    )
    assert namespace.pods(NAME) == []

    cluster.client.delete(namespace.job_path(NAME))
    eventually(lambda: cluster.client.find(namespace.job_path(NAME)) is None, "the FineTuneJob is gone")
    assert {path: lasting(cluster.client.get(path)) for path in before} == before
    writes = [each for each in cluster.server.audit.writes(operator.credential) if each.namespace == namespace.name]
    assert {each.resource for each in writes} == {"finetunejobs/status"}


def test_a_job_whose_owner_had_the_same_name_is_not_adopted(
    cluster: Cluster, namespace: Namespace, operator: OperatorProcess
) -> None:
    """The owner's UID decides, not its name."""
    owner = names.owner_reference(NAME, "00000000-0000-0000-0000-000000000000") | {"blockOwnerDeletion": False}
    metadata = {
        "name": NAME,
        "labels": names.labels(NAME),
        "ownerReferences": [owner],
        "finalizers": ["example.com/held"],
    }
    cluster.client.create(
        namespace.child_path(), {"metadata": metadata, "spec": {"suspend": True, "template": TEMPLATE}}
    )
    namespace.apply(job(), NAME)
    namespace.until(NAME, "Reconciling", "ChildNameTaken")
    changes = [
        each.verb
        for each in cluster.server.audit.writes(operator.credential)
        if (each.namespace, each.resource) == (namespace.name, "jobs")
    ]
    assert changes == []
    cluster.client.patch(namespace.child_path(NAME), {"metadata": {"finalizers": None}})


def test_the_service_of_a_job_has_a_name_that_cannot_be_known_before() -> None:
    assert names.service_name(NAME, "11111111-x") != names.service_name(NAME, "22222222-x")
