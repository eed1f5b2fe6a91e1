"""What the operator's account may do, as its cluster has it, and what of that it did, by the audit log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from testbed.audit import AuditLog, Write
from testbed.client import Client, Object
from testbed.operator_process import ACCOUNT, NAMESPACE

Right = tuple[str, str]
"""A verb and a resource."""
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
NOT_REQUESTED: set[Right] = {
    # Asked for by admission when an owner reference blocks deletion; no request of its own.
    ("update", "finetunejobs/finalizers"),
}
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


def granted(client: Client) -> set[Right]:
    """The rights in the roles that are bound to the account."""
    rules = [rule for role in _roles(client) for rule in role["rules"]]
    return {(verb, resource) for rule in rules for verb in rule["verbs"] for resource in rule["resources"]}


def _roles(client: Client) -> Iterator[Object]:
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    for kind in ("clusterrolebindings", "rolebindings"):
        for binding in client.items(f"{_RBAC}/{kind}"):
            if account in binding.get("subjects", ()):
                role, namespace = binding["roleRef"], binding["metadata"].get("namespace")
                where = f"namespaces/{namespace}/roles" if role["kind"] == "Role" else "clusterroles"
                yield client.get(f"{_RBAC}/{where}/{role['name']}")


def requests(audit: AuditLog) -> list[Write]:
    """Everything that the account asked for."""
    return [request for request in audit.everything() if request.user == USER]


def used(audit: AuditLog) -> Counter[Right]:
    """How often each right was used."""
    return Counter((request.verb, request.resource) for request in requests(audit) if request.code < 400)


def refused(audit: AuditLog) -> list[Write]:
    """What the account asked for and lacked the right to, or whose token was not taken."""
    return [request for request in requests(audit) if not request.authorized or request.code == 401]


def is_allowed(
    client: Client, verb: str, resource: str, group: str, namespace: str = "default", name: str = ""
) -> bool:
    """Whether the account has a right."""
    plural, _, subresource = resource.partition("/")
    attributes = {
        "verb": verb,
        "group": group,
        "resource": plural,
        "subresource": subresource,
        "namespace": namespace,
        "name": name,
    }
    review: Object = {"spec": {"user": USER, "resourceAttributes": attributes}}
    answer = client.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def missing(audit: AuditLog, client: Client) -> list[tuple[str, ...]]:
    """What the account asked for and has no right to; an API server that is just starting refuses more."""
    forbidden = {(each.verb, each.resource, each.group, each.namespace, each.name) for each in refused(audit)}
    return sorted(attributes for attributes in forbidden if not is_allowed(client, *attributes))


def table(rights: set[Right], uses: Counter[Right]) -> str:
    """The rights, one a line, with how often each was used."""
    by_resource = sorted(rights, key=lambda right: right[::-1])
    return "\n".join(f"{uses[verb, resource]:6} {verb:8} {resource}" for verb, resource in by_resource)
