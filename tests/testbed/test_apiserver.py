"""The API server of the test bed starts and validates as Kubernetes does."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .apiserver import ApiServer
from .binaries import FROM_BUILD, kubernetes_version, minor_version

pytest_plugins = [f"{__package__}.plugin"]
pytestmark = pytest.mark.integration

GROUP = "testbed.example.com"

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"widgets.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "size": {
                                        "type": "integer",
                                        "x-kubernetes-validations": [
                                            {
                                                "rule": "self % 2 == 0",
                                                "message": "must be even",
                                            }
                                        ],
                                    }
                                },
                            }
                        },
                    }
                },
            }
        ],
    },
}


def widget(name: str, size: object) -> str:
    return json.dumps(
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Widget",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"size": size},
        }
    )


@pytest.fixture(scope="module")
def widgets(api_server: ApiServer) -> Iterator[ApiServer]:
    """The API server while it has the Widget resource."""
    applied = api_server.kubectl("apply", "-f", "-", stdin=json.dumps(CRD))
    assert applied.returncode == 0, applied.stderr
    condition = "--for=condition=Established"
    waited = api_server.kubectl("wait", condition, f"crd/widgets.{GROUP}")
    assert waited.returncode == 0, waited.stderr
    yield api_server
    api_server.kubectl("delete", f"crd/widgets.{GROUP}")


def test_version_is_the_pinned_one(api_server: ApiServer) -> None:
    result = api_server.kubectl("version", "--output=json")
    assert result.returncode == 0, result.stderr
    versions = json.loads(result.stdout)
    for side in ("clientVersion", "serverVersion"):
        version = versions[side]["gitVersion"]
        if api_server.binaries.origin == FROM_BUILD:
            assert version == kubernetes_version()
        else:
            assert version.startswith(f"{minor_version()}.")


def test_namespace_can_be_created(api_server: ApiServer) -> None:
    created = api_server.kubectl("create", "namespace", "testbed-self-test")
    assert created.returncode == 0, created.stderr
    read = api_server.kubectl("get", "namespace", "testbed-self-test", "-o", "name")
    assert read.stdout.strip() == "namespace/testbed-self-test"


def test_rbac_restricts_a_service_account(api_server: ApiServer) -> None:
    account = "system:serviceaccount:default:nobody"
    result = api_server.kubectl("auth", "can-i", "list", "secrets", f"--as={account}")
    assert result.stdout.strip() == "no"


def test_service_account_tokens_are_issued(api_server: ApiServer) -> None:
    api_server.kubectl("create", "serviceaccount", "token-owner")
    result = api_server.kubectl("create", "token", "token-owner")
    assert result.returncode == 0, result.stderr
    result = api_server.kubectl("auth", "whoami", f"--token={result.stdout.strip()}")
    assert "system:serviceaccount:default:token-owner" in result.stdout, result.stderr


def test_crd_accepts_a_good_object(widgets: ApiServer) -> None:
    result = widgets.kubectl("apply", "-f", "-", stdin=widget("good", 2))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("size", "reason"), [(3, "must be even"), ("two", "must be of type integer")])
def test_crd_refuses_a_bad_object_and_names_the_field(widgets: ApiServer, size: object, reason: str) -> None:
    result = widgets.kubectl("apply", "-f", "-", stdin=widget("bad", size))
    assert result.returncode != 0
    assert "spec.size" in result.stderr
    assert reason in result.stderr
