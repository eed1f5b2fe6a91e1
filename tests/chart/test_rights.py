"""What the chart grants: exactly what manifests/rbac grants, and nothing that a reviewer would ask about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from chart.rendering import MANIFESTS, Chart, Object, of_kind
from chart.value_sets import READERS, VALUE_SETS

Right = tuple[str, str, str, str]
FORBIDDEN = {
    "secrets", "nodes", "namespaces", "serviceaccounts", "serviceaccounts/token", "roles", "rolebindings",
    "clusterroles", "clusterrolebindings", "persistentvolumes", "pods/exec", "pods/attach", "pods/portforward",
    "pods/log", "configmaps", "customresourcedefinitions",
}  # fmt: skip
REVIEWS = {
    ("authentication.k8s.io", "tokenreviews", "create", ""),
    ("authorization.k8s.io", "subjectaccessreviews", "create", ""),
}
ESCALATING = {"*", "escalate", "bind", "impersonate", "deletecollection"}


def rights(role: Object) -> Iterator[Right]:
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb, ",".join(rule.get("resourceNames", []))


def is_of_readers(found: Object) -> bool:
    """Whether it is about who reads metrics, not about the operator."""
    name: str = found["metadata"]["name"]
    return name.endswith("-metrics-reader")


def bound(found: list[Object], binding_kind: str, role_kind: str) -> dict[str, set[Right]]:
    """What the operator's account may do: by a binding's namespace, which is empty for the whole cluster."""
    granted: dict[str, set[Right]] = {}
    for binding in of_kind(found, binding_kind):
        if is_of_readers(binding):
            continue
        assert [subject["kind"] for subject in binding["subjects"]] == ["ServiceAccount"]
        assert binding["roleRef"]["kind"] == role_kind
        namespace = binding["metadata"].get("namespace", "")
        role = next(
            role
            for role in of_kind(found, role_kind)
            if role["metadata"]["name"] == binding["roleRef"]["name"]
            and role["metadata"].get("namespace", "") == namespace
        )
        granted.setdefault(namespace, set()).update(rights(role))
    return granted


def everything(found: list[Object]) -> dict[str, set[Right]]:
    return bound(found, "ClusterRoleBinding", "ClusterRole") | bound(found, "RoleBinding", "Role")


def committed() -> dict[str, set[Right]]:
    return everything([yaml.safe_load(path.read_text()) for path in (MANIFESTS / "rbac").glob("*.yaml")])


@pytest.mark.security(6)
def test_the_chart_grants_what_the_manifests_grant(chart: Chart) -> None:
    assert everything(chart.render()) == committed()


@pytest.mark.security(8)
def test_one_namespace_gets_the_same_rights_there_and_only_reviews_elsewhere(chart: Chart) -> None:
    found = everything(chart.render(VALUE_SETS["one-namespace"]))
    whole = committed()
    assert found == {"team-a": whole[""] - REVIEWS, "": REVIEWS, "finetune-system": whole["finetune-system"]}


@pytest.mark.security(8)
def test_one_namespace_without_tls_gets_nothing_of_the_cluster(chart: Chart) -> None:
    found = chart.render(VALUE_SETS["one-namespace-plain"])
    assert not of_kind(found, "ClusterRole")
    assert not of_kind(found, "ClusterRoleBinding")
    assert set(everything(found)) == {"team-a", "finetune-system"}


@pytest.mark.parametrize(
    ("values", "reviews"),
    [
        ("plain", set()),
        ("plain-metrics", {"tokenreviews"}),
        ("silent", {"tokenreviews", "subjectaccessreviews"}),
        ("defaults", {"tokenreviews", "subjectaccessreviews"}),
    ],
)
def test_only_the_reviews_that_are_needed_may_be_asked_for(chart: Chart, values: str, reviews: set[str]) -> None:
    granted = everything(chart.render(VALUE_SETS[values]))[""]
    assert {right[1] for right in granted if right[1].endswith("reviews")} == reviews


def readers(found: list[Object], kind: str) -> list[Object]:
    """The role of who reads metrics, or its binding."""
    return [each for each in of_kind(found, kind) if is_of_readers(each)]


@pytest.mark.security(21)
def test_nobody_reads_metrics_but_who_is_named(chart: Chart) -> None:
    found = chart.render()
    [role] = readers(found, "ClusterRole")
    assert role["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    assert not readers(found, "ClusterRoleBinding")
    for values in ("read", "one-namespace-read"):
        found = chart.render(VALUE_SETS[values])
        [role], [binding] = readers(found, "ClusterRole"), readers(found, "ClusterRoleBinding")
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", **reader} for reader in READERS]
    assert not readers(chart.render(VALUE_SETS["plain-metrics"]), "ClusterRole")


@pytest.mark.security(6)
@pytest.mark.parametrize("values", VALUE_SETS)
def test_no_rendering_grants_what_it_must_not(chart: Chart, values: str) -> None:
    found = chart.render(VALUE_SETS[values])
    for namespace, granted in everything(found).items():
        assert not [right for right in granted if right[1] in FORBIDDEN or right[2] in ESCALATING], namespace
        assert not [right for right in granted if "*" in right[0] + right[1]], namespace
        assert not [right for right in granted if right[1] == "pods" and right[2] not in ("list", "watch")], namespace


def test_user_roles_hold_fine_tune_jobs_alone_and_are_bound_to_nobody(chart: Chart) -> None:
    found = chart.render(VALUE_SETS["user-roles"])
    roles = {role["metadata"]["name"]: role for role in of_kind(found, "ClusterRole")}
    ours = {"finetune-operator", "finetune-operator-metrics-reader"}
    users: dict[str, Any] = {name: role for name, role in roles.items() if name not in ours}
    assert set(users) == {"finetune-operator-view", "finetune-operator-edit"}
    for role in users.values():
        assert {right[0] for right in rights(role)} == {"finetune-operator.io"}
    assert {right[2] for right in rights(users["finetune-operator-view"])} == {"get", "list", "watch"}
    writes_status = [right for right in rights(users["finetune-operator-edit"]) if "status" in right[1]]
    assert not writes_status
    assert everything(found) == committed()


def test_without_rbac_there_is_no_role(chart: Chart) -> None:
    found = chart.render(VALUE_SETS["own-account"])
    assert not [each for each in found if "Role" in each["kind"] or each["kind"] == "ServiceAccount"]


@pytest.mark.security(4)
@pytest.mark.parametrize("values", ["defaults", "annotated-account"])
def test_the_account_gives_its_token_to_nobody_unasked(chart: Chart, values: str) -> None:
    account = of_kind(chart.render(VALUE_SETS[values]), "ServiceAccount")[0]
    assert account["automountServiceAccountToken"] is False
