"""Asks a real API server what an account may do: every verb on every resource that the server knows."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from testbed.apiserver import ApiServer
from testbed.client import Client

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_GOLDEN = Path(__file__).with_name("rights.txt")
_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


class Right(NamedTuple):
    """A verb on a resource, which may be a subresource (`pods/exec`)."""

    group: str
    resource: str
    verb: str


# Rights over rights, and other people's names: no discovery lists their verbs.
_RBAC, _ACCOUNTS = "rbac.authorization.k8s.io", ("users", "groups", "serviceaccounts")
ESCALATING = (
    *(Right(_RBAC, kind, verb) for kind in ("roles", "clusterroles") for verb in ("escalate", "bind")),
    *(Right("", kind, "impersonate") for kind in _ACCOUNTS),
    Right("authentication.k8s.io", "userextras", "impersonate"),
    Right("certificates.k8s.io", "signers", "approve"),
    Right("*", "*", "*"),
)


def golden() -> set[tuple[str, Right, str]]:
    """The rights that a reviewer has agreed to: where, what, and of which name."""
    lines = [line.split() for line in _GOLDEN.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {
        (where, Right("" if group == "core" else group, what, verb), name) for where, group, what, verb, name in lines
    }


def everything(client: Client) -> list[Right]:
    """Every verb on every resource that the server offers, and those that lead to more rights."""
    groups = client.get("/apis")["groups"]
    versions = [("", "/api/v1")]
    versions += [(each["name"], f"/apis/{each['preferredVersion']['groupVersion']}") for each in groups]
    resources = {(group, resource["name"]) for group, path in versions for resource in client.get(path)["resources"]}
    found = {Right(*resource, verb) for resource in resources for verb in _VERBS}
    # Asked for by admission only, and so in no list.
    found |= {Right(group, f"{name}/finalizers", "update") for group, name in resources if "/" not in name}
    return sorted(found | set(ESCALATING))


@dataclass(frozen=True)
class Account:
    """Whoever has a token, asking about itself over one connection."""

    connection: http.client.HTTPSConnection
    token: str

    def may(self, right: Right, namespace: str, name: str = "") -> bool:
        """Whether the API server lets it; no namespace is the whole cluster."""
        resource, _, subresource = right.resource.partition("/")
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": resource,
            "subresource": subresource,
            "namespace": namespace,
            "name": name,
        }
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self.connection.request("POST", _REVIEWS, json.dumps({"spec": {"resourceAttributes": attributes}}), headers)
        response = self.connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == http.client.CREATED, answer
        return bool(answer["status"]["allowed"])

    def granted(self, asked: list[Right], namespace: str) -> set[Right]:
        """Those of the rights that it has."""
        return {right for right in asked if self.may(right, namespace)}


@contextmanager
def account(server: ApiServer, token: str) -> Iterator[Account]:
    """Who has the token, for as long as the with block."""
    context = ssl.create_default_context(cafile=server.ca_file)
    address = server.url.removeprefix("https://")
    with closing(http.client.HTTPSConnection(address, timeout=30, context=context)) as connection:
        yield Account(connection, token)
