"""What accounts may do, as a real API server answers: the operator's, a training pod's, and a user's."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
import yaml

from operator_jobs import job
from security.reviews import Account, Right, account, everything, golden
from testbed.client import Client, Object, RequestError
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import ACCOUNT, NAMESPACE, RBAC, service_account_token

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

NEVER = {
    "secrets", "nodes", "namespaces", "serviceaccounts", "serviceaccounts/token", "pods/exec", "pods/attach",
    "pods/portforward", "pods/ephemeralcontainers", "nodes/proxy", "roles", "rolebindings", "clusterroles",
    "clusterrolebindings", "persistentvolumes", "configmaps", "customresourcedefinitions",
    "validatingwebhookconfigurations", "mutatingwebhookconfigurations",
}  # fmt: skip
NEVER_VERBS = {"*", "escalate", "bind", "impersonate", "approve", "deletecollection"}


def written() -> set[tuple[str, Right, str]]:
    """The rights in manifests/rbac that are bound to the operator's account."""
    found: set[tuple[str, Right, str]] = set()
    documents = [each for path in RBAC.glob("*.yaml") for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    roles = {(each["kind"], each["metadata"]["name"]): each for each in documents if "rules" in each}
    for binding in (each for each in documents if "roleRef" in each):
        assert [(each["name"], each["namespace"]) for each in binding["subjects"]] == [(ACCOUNT, NAMESPACE)]
        role = roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        where = binding["metadata"].get("namespace", "everywhere")
        found |= {(where, right, name) for rule in role["rules"] for right, name in rights(rule)}
    return found


def rights(rule: Object) -> Iterator[tuple[Right, str]]:
    assert set(rule) <= {"apiGroups", "resources", "verbs", "resourceNames"}
    for group, resource, verb in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"]):
        yield from ((Right(group, resource, verb), name) for name in rule.get("resourceNames", ["any"]))


@pytest.mark.security(6)
def test_the_rights_in_the_manifests_are_those_of_the_golden_file() -> None:
    assert written() == golden()
    assert not [each for each in golden() if each[1].resource in NEVER or each[1].verb in NEVER_VERBS]


@pytest.fixture(scope="module")
def asked(cluster: Cluster) -> list[Right]:
    """Every question there is."""
    found = everything(cluster.client)
    assert len(found) > 900
    assert {right.resource for right in found} >= NEVER
    return found


@pytest.fixture(scope="module")
def nobody(cluster: Cluster, asked: list[Right]) -> set[Right]:
    """What every account may do."""
    home = cluster.namespace()
    token = service_account_token(cluster.server, account="default", namespace=home.name)
    with account(cluster.server, token) as anyone:
        return anyone.granted(asked, home.name)


@pytest.fixture(scope="module")
def operators_account(cluster: Cluster) -> Iterator[Account]:
    with account(cluster.server, service_account_token(cluster.server)) as found:
        yield found


@pytest.mark.security(6)
def test_the_api_server_grants_the_operator_what_is_in_the_golden_file_and_nothing_else(
    cluster: Cluster, operators_account: Account, asked: list[Right], nobody: set[Right]
) -> None:
    everywhere = {right for where, right, name in golden() if (where, name) == ("everywhere", "any")}
    at_home = {right for where, right, name in golden() if (where, name) == (NAMESPACE, "any")}
    team = cluster.namespace().name
    assert operators_account.granted(asked, team) - nobody == everywhere
    assert operators_account.granted(asked, NAMESPACE) - nobody == everywhere | at_home


@pytest.mark.security(6)
def test_what_is_granted_by_name_holds_for_that_name_only(cluster: Cluster, operators_account: Account) -> None:
    named = [(where, right, name) for where, right, name in golden() if name != "any"]
    assert named
    for where, right, name in named:
        assert operators_account.may(right, where, name)
        assert not operators_account.may(right, where, "another")
        assert not operators_account.may(right, "default", name)


@pytest.mark.security(4, 10)
def test_the_account_of_training_pods_may_do_what_every_account_may(nobody: set[Right]) -> None:
    """Ask about itself, no more: its token would be worth nothing, even if a pod had it."""
    assert {right.resource for right in nobody} == {
        "selfsubjectaccessreviews",
        "selfsubjectrulesreviews",
        "selfsubjectreviews",
    }
    assert {right.verb for right in nobody} == {"create"}


@pytest.fixture
def applicant(cluster: Cluster, namespace: Namespace) -> str:
    """The token of somebody who may create FineTuneJobs in the namespace, and do nothing else."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    rule = {"apiGroups": ["finetune-operator.io"], "resources": ["finetunejobs"], "verbs": ["create"]}
    subject = {"kind": "ServiceAccount", "name": "applicant", "namespace": namespace.name}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "applicant"}
    metadata = {"name": "applicant"}
    cluster.client.create(namespace.path("serviceaccounts"), {"metadata": metadata})
    cluster.client.create(namespace.path("roles", prefix=rbac), {"metadata": metadata, "rules": [rule]})
    binding = {"metadata": metadata, "roleRef": reference, "subjects": [subject]}
    cluster.client.create(namespace.path("rolebindings", prefix=rbac), binding)
    return service_account_token(cluster.server, account="applicant", namespace=namespace.name)


@pytest.mark.security(10)
@pytest.mark.usefixtures("operator")
def test_who_may_only_create_jobs_reads_nothing_by_it(
    cluster: Cluster, namespace: Namespace, applicant: str, asked: list[Right], nobody: set[Right]
) -> None:
    with account(cluster.server, applicant) as found:
        assert found.granted(asked, namespace.name) - nobody == {
            Right("finetune-operator.io", "finetunejobs", "create")
        }
    canary = "canary-3f9a1c"
    hidden: Object = {"metadata": {"name": "hidden"}, "stringData": {"key": canary, "other": canary}}
    cluster.client.create(namespace.path("secrets"), hidden)
    variables = [
        {"name": name, "secret": "hidden", "key": "key"} for name in ("HF_TOKEN", "KUBEFLOW_TRAINER_SERVER_TOKEN")
    ]
    as_applicant = Client(cluster.server, applicant)
    manifest = job(pod={"envFromSecrets": variables})
    manifest["metadata"] = {"name": "curious"}
    as_applicant.create(namespace.job_path(), manifest)
    pod = namespace.bound_pod("curious")

    [container] = pod["spec"]["containers"]
    assert "envFrom" not in container
    sources = {entry["name"]: entry["valueFrom"] for entry in container["env"] if "valueFrom" in entry}
    # The API server adds the number of the pod in its Job; a secret replaces no variable that the operator sets.
    assert sources.pop("JOB_COMPLETION_INDEX", {"fieldRef": {}}).keys() == {"fieldRef"}
    assert sources == {"HF_TOKEN": {"secretKeyRef": {"name": "hidden", "key": "key"}}}
    assert canary not in everything_readable(cluster, namespace)
    for path in (namespace.job_path("curious"), namespace.path("secrets", "hidden"), namespace.path("pods")):
        with pytest.raises(RequestError, match="forbidden"):
            as_applicant.get(path)


def everything_readable(cluster: Cluster, namespace: Namespace) -> str:
    """What the operator and the controllers have written about the namespace's jobs."""
    namespace.until("curious", "Reconciling")
    kinds = (
        namespace.job_path(), namespace.child_path(), namespace.path("pods"), namespace.path("configmaps"),
        namespace.path("events", prefix="/apis/events.k8s.io/v1"),
    )  # fmt: skip
    return json.dumps([cluster.client.get(path) for path in kinds])
