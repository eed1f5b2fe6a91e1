"""A dead watch is noticed: /healthz says so, so that the process is started anew, or the process ends by itself."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import yaml

from operator_jobs import job
from testbed.client import Client, Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import ACCOUNT, NAMESPACE, RBAC, OperatorProcess, service_account_token
from testbed.proxy import Proxy

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

Start = Callable[..., AbstractContextManager[OperatorProcess]]
RBAC_API = "/apis/rbac.authorization.k8s.io/v1"
NOTICED_SECONDS = 60
IDLE_SECONDS = 3
"""Longer than between two requests: what is idle for longer is a watch."""
WATCHES = 3


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    with Proxy(cluster.server).running() as running:
        yield running


@pytest.fixture
def stripped(cluster: Cluster) -> Iterator[str]:
    """An account like the operator's, whose role is its own: a test may take rights away from it."""
    client, name = cluster.client, "stripped-operator"
    role = yaml.safe_load((RBAC / "cluster_role.yaml").read_text())
    paths = {
        f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts": {"metadata": {"name": name}},
        f"{RBAC_API}/clusterroles": {"metadata": {"name": name}, "rules": role["rules"]},
        f"{RBAC_API}/clusterrolebindings": bound(name, {"kind": "ClusterRole", "name": name}),
        f"{RBAC_API}/namespaces/{NAMESPACE}/rolebindings": bound(
            name, {"kind": "Role", "name": f"{ACCOUNT}-leader-election"}
        ),
    }
    for path, body in paths.items():
        client.create(path, body)
    yield name
    for path in paths:
        client.delete(f"{path}/{name}")


def bound(name: str, role: Object) -> Object:
    subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", **role}
    return {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}


def take_away(cluster: Cluster, name: str, verb: str) -> list[Object]:
    """Withdraw a verb from an account's own role, for every kind of object, until it is refused; returns what was."""
    path = f"{RBAC_API}/clusterroles/{name}"
    rules = cluster.client.get(path)["rules"]
    before = copy.deepcopy(rules)
    for rule in rules:
        rule["verbs"] = [each for each in rule["verbs"] if each != verb] or ["get"]
    account = Client(cluster.server, service_account_token(cluster.server, account=name))
    assert may(account, verb)
    cluster.client.patch(path, {"rules": rules})
    # The API server learns of a changed role by a watch of its own: a request right after the change may still pass.
    eventually(lambda: not may(account, verb), f"{name} may no longer {verb}")
    return before


def may(account: Client, verb: str) -> bool:
    """Whether an account has a right to the operator's Jobs."""
    asked = {"resourceAttributes": {"verb": verb, "group": "batch", "resource": "jobs"}}
    answer = account.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": asked})
    return bool(answer["status"]["allowed"])


def test_operator_that_is_well_says_so(cluster: Cluster, namespace: Namespace, start_operator: Start) -> None:
    cluster.release_lease()
    with start_operator("well", resync_seconds=1) as operator:
        namespace.apply(job(), "any")
        namespace.bound_pod("any")
        time.sleep(5)  # some resyncs, after which a false alarm would be raised
        assert operator.health() == (200, "ok")


def test_silent_watches_make_it_unhealthy_with_the_reason_and_the_jobs_go_on_by_the_resync(
    cluster: Cluster, namespace: Namespace, start_operator: Start, proxy: Proxy
) -> None:
    """A load balancer that forgot the connection: it stays open and brings nothing more."""
    cluster.release_lease()
    with start_operator("deaf", api_url=proxy.url, resync_seconds=1) as operator:
        assert operator.health() == (200, "ok")
        time.sleep(IDLE_SECONDS + 1)
        assert proxy.silence(IDLE_SECONDS) >= WATCHES
        numbers = itertools.count()

        def unhealthy() -> bool:
            namespace.apply(job(), f"unheard-{next(numbers)}")
            time.sleep(1)
            return operator.health()[0] == 503

        eventually(unhealthy, "503", NOTICED_SECONDS)
        assert "resyncs in a row found changes that no watch had brought" in operator.health()[1]
        assert namespace.child("unheard-0")["metadata"]["name"] == "unheard-0"


def test_watch_that_is_no_longer_allowed_is_noticed_and_ends_the_process(
    cluster: Cluster, namespace: Namespace, start_operator: Start, proxy: Proxy, stripped: str
) -> None:
    cluster.release_lease()
    with start_operator("stripped", api_url=proxy.url, account=stripped) as operator:
        take_away(cluster, stripped, "watch")
        proxy.cut()
        assert operator.wait(NOTICED_SECONDS) == 1  # after some tries: while a cluster is upgraded, 403 may pass
        assert "APIForbiddenError" in operator.log()
        assert 'cannot watch resource "' in operator.log()


def test_lists_that_are_no_longer_allowed_make_it_unhealthy_with_the_reason(
    cluster: Cluster, start_operator: Start, stripped: str
) -> None:
    cluster.release_lease()
    with start_operator("listless", account=stripped, resync_seconds=1) as operator:
        take_away(cluster, stripped, "list")
        eventually(lambda: operator.health()[0] == 503, "503", NOTICED_SECONDS)
        assert "no resync has passed for" in operator.health()[1]


def test_leader_that_may_not_list_is_not_ready_until_it_may(
    cluster: Cluster, start_operator: Start, stripped: str
) -> None:
    """An installation that lacks a right does not look like one that works."""
    cluster.release_lease()
    rules = take_away(cluster, stripped, "list")
    with start_operator("blind", leading=False, account=stripped) as operator:
        eventually(lambda: "cannot list resource" in operator.health("/readyz")[1], "the reason at /readyz")
        assert operator.health("/readyz")[0] == 503
        assert operator.health() == (200, "ok")  # for two minutes: it may be given the right
        cluster.client.patch(f"{RBAC_API}/clusterroles/{stripped}", {"rules": rules})
        eventually(lambda: operator.health("/readyz") == (200, "ok"), "ready")
