"""The operator with a Role alone: it serves one namespace, and of any other it asks nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import yaml

from operator_jobs import job
from security.reviews import account, golden
from testbed.client import Object
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import NAMESPACE, RBAC, ROOT, OperatorProcess, service_account_token

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

NARROW = "narrow"
START = Callable[..., AbstractContextManager[OperatorProcess]]


def role_alone(served: Namespace, home: Namespace) -> list[Object]:
    """The Roles of manifests/overlays/namespaced for these namespaces, bound to an account of their own."""
    files = (ROOT / "manifests" / "overlays" / "namespaced" / "role.yaml", *sorted(RBAC.glob("leader_election_*.yaml")))
    found = []
    for body in (each for file in files for each in yaml.safe_load_all(file.read_text(encoding="utf-8"))):
        if body["kind"] not in ("Role", "RoleBinding"):
            continue
        is_of_the_lease = body["metadata"]["namespace"] == NAMESPACE
        body["metadata"]["namespace"] = (home if is_of_the_lease else served).name
        for subject in body.get("subjects", ()):
            subject["name"] = NARROW
        found.append(body)
    return found


@pytest.mark.security(8)
def test_with_a_role_alone_one_namespace_is_served_and_no_other_is_asked_about(
    cluster: Cluster, start_operator: START
) -> None:
    home, served, other = cluster.namespace(), cluster.namespace(), cluster.namespace()
    cluster.client.create(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": NARROW}})
    made = role_alone(served, home)
    assert sorted(each["kind"] for each in made) == ["Role", "Role", "RoleBinding", "RoleBinding"]
    done = cluster.server.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(made))
    assert done.returncode == 0, done.stderr
    other.apply(job(), "untouched")
    before = other.job("untouched")

    with account(cluster.server, service_account_token(cluster.server, account=NARROW)) as narrow:
        asked = sorted({right for _, right, _ in golden()})
        assert narrow.granted(asked, served.name)
        for elsewhere in (other.name, NAMESPACE, ""):
            assert narrow.granted(asked, elsewhere) == set()

    settings = {"watch_namespace": served.name, "operator_namespace": home.name, "progress_url": ""}
    with start_operator(NARROW, account=NARROW, **settings) as operator:
        served.apply(job(), "served")
        pod = served.bound_pod("served")
        cluster.kubelet.run(pod)
        served.until("served", "Running")
        assert other.job("untouched") == before
        assert cluster.client.find(other.child_path("untouched")) is None
        requests = [each for each in cluster.server.audit.everything() if each.credential == operator.credential]
        assert {each.namespace for each in requests} == {home.name, served.name}
        assert not [each for each in requests if each.code in (401, 403)]
