"""Which images training pods may run: judged on a real API server, while the real Job controller works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from chart.rendering import Chart, Object
from testbed.apiserver import ApiServer
from testbed.binaries import Binaries
from testbed.client import Client, RequestError, eventually
from testbed.cluster import Cluster, Namespace, make_namespace
from testbed.controllers import controllers
from testbed.kubelet import PlayedKubelet

pytestmark = [pytest.mark.integration, pytest.mark.security(23)]

LABEL = "finetune-operator.io/job-name"
FORMER, CURRENT, FOREIGN = (f"registry.example.com/{name}" for name in ("trainer:1", "trainer:2", "other:1"))
LABELLED = {LABEL: "tuned"}


@dataclass(frozen=True)
class Judged:
    """A namespace that the policy judges, and one that it does not."""

    chart: Chart
    cluster: Cluster
    team: Namespace

    def allow(self, image: str) -> None:
        """Have the policy of a release whose trainer is that image; returns when it acts."""
        repository, tag = image.split(":")
        policy = {"images": {"enabled": True}, "namespaceLabels": {"kubernetes.io/metadata.name": self.team.name}}
        values: dict[str, Any] = {
            "trainer": {"image": {"repository": repository, "tag": tag}},
            "admissionPolicy": policy,
        }
        made = [each for each in self.chart.render(values) if each["kind"].startswith("ValidatingAdmissionPolicy")]
        self._kubectl("apply", "--warnings-as-errors", "--filename=-", stdin=made)
        probe = {"metadata": {"name": "probe", "labels": LABELLED}, "spec": pod_spec(image)}
        other = FORMER if image == CURRENT else CURRENT
        eventually(lambda: self.says_of("pods", probe) == "", f"{image} is allowed", 60)
        probe["spec"] = pod_spec(other)
        eventually(lambda: self.says_of("pods", probe), f"{other} is not", 60)
        eventually(lambda: self.says_of("jobs", job("probe", other)), "Jobs are judged", 60)

    def says_of(self, plural: str, body: Object) -> str:
        """Why an object would not be created; empty when it would be."""
        path = self.team.child_path() if plural == "jobs" else self.team.path(plural)
        return self.says("POST", f"{path}?dryRun=All", body)

    def says(self, method: str, path: str, body: Object) -> str:
        """Why a request is refused; empty when it is not."""
        kind = "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"
        try:
            self.cluster.client.send(method, path, body, kind)
        except RequestError as error:
            return str(error)
        return ""

    def pod(self, name: str, image: str, labels: dict[str, str]) -> str:
        """A pod that is made; returns its path."""
        body = {"metadata": {"name": name, "labels": labels}, "spec": pod_spec(image)}
        self.cluster.client.create(self.team.path("pods"), body)
        return self.team.path("pods", name)

    def _kubectl(self, *arguments: str, stdin: list[Object]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": stdin})
        done = self.cluster.server.kubectl(*arguments, stdin=text)
        assert done.returncode == 0, done.stderr


def pod_spec(image: str, **fields: Any) -> Object:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "trainer", "image": image, "securityContext": security}],
        **fields,
    }


def job(name: str, image: str, labels: dict[str, str] = LABELLED, **fields: Any) -> Object:
    template = {"metadata": {"labels": labels}, "spec": pod_spec(image)}
    return {"metadata": {"name": name}, "spec": {"template": template, **fields}}


@contextmanager
def running_cluster(binaries: Binaries) -> Iterator[Cluster]:
    """Controllers with accounts of their own: who makes a Job's pods is known by that."""
    with ApiServer.start(binaries) as server, controllers(server, own_accounts=True):
        client = Client(server)
        with PlayedKubelet(client).running() as kubelet:
            yield Cluster(server, client, kubelet)


@pytest.fixture(scope="module")
def judged(chart: Chart, control_plane: Binaries) -> Iterator[Judged]:
    with running_cluster(control_plane) as cluster:
        found = Judged(chart, cluster, make_namespace("judged", cluster))
        found.allow(FORMER)
        yield found


@pytest.fixture
def former(judged: Judged) -> Iterator[Judged]:
    """The policy while the former image is the one that is allowed."""
    judged.allow(FORMER)
    yield judged
    judged.cluster.client.delete(judged.team.path("pods") + "?gracePeriodSeconds=0")


def test_a_job_that_runs_across_an_upgrade_tries_again_and_ends(former: Judged) -> None:
    former.cluster.client.create(former.team.child_path(), job("tuned", FORMER, backoffLimit=1))
    first = former.team.bound_pod("tuned")
    former.cluster.kubelet.run(first)
    former.allow(CURRENT)
    former.cluster.kubelet.end(first, 1)
    second = eventually(lambda: other_than(first, former), "another try", 60)
    former.cluster.kubelet.end(second, 0)

    def ended() -> bool:
        status = former.cluster.client.get(former.team.child_path("tuned")).get("status", {})
        return any(entry["type"] == "Complete" for entry in status.get("conditions", ()))

    # It takes its finalizer off every pod first.
    eventually(ended, "the Job is complete", 60)
    assert not [pod for pod in former.team.pods("tuned") if pod["metadata"].get("finalizers")]


def other_than(first: Object, judged: Judged) -> Object | None:
    bound = [pod for pod in judged.team.pods("tuned") if "nodeName" in pod["spec"]]
    return next((pod for pod in bound if pod["metadata"]["uid"] != first["metadata"]["uid"]), None)


def test_a_pod_with_the_former_image_is_changed_but_not_in_its_image(former: Judged) -> None:
    path = former.pod("runs", FORMER, LABELLED)
    former.allow(CURRENT)
    assert former.says("PATCH", path, {"metadata": {"finalizers": ["example.com/kept"]}}) == ""
    assert former.says("PATCH", path, {"metadata": {"finalizers": None}}) == ""
    changed = {"spec": {"containers": [{"name": "trainer", "image": FOREIGN}]}}
    assert f"may not run {FOREIGN}" in former.says("PATCH", path, changed)
    changed["spec"]["containers"][0]["image"] = CURRENT
    assert former.says("PATCH", path, changed) == ""


def test_a_pod_does_not_become_a_training_pod_by_a_label(former: Judged) -> None:
    path = former.pod("stranger", FOREIGN, {"app": "web"})
    assert f"may not run {FOREIGN}" in former.says("PATCH", path, {"metadata": {"labels": LABELLED}})
    assert former.says("PATCH", path, {"metadata": {"labels": {"app": "other"}}}) == ""


def test_nothing_else_is_put_into_a_training_pod(former: Judged) -> None:
    """As `kubectl debug` does it."""
    path = former.pod("debugged", FORMER, LABELLED)

    def debug(image: str) -> str:
        container = pod_spec(image)["containers"][0] | {"name": f"debug-{image[-1]}"}
        return former.says("PATCH", f"{path}/ephemeralcontainers", {"spec": {"ephemeralContainers": [container]}})

    assert f"may not run {FOREIGN}" in debug(FOREIGN)
    assert debug(FORMER) == ""
    with_init = pod_spec(FORMER, initContainers=pod_spec(FOREIGN)["containers"])
    with_init["initContainers"][0]["name"] = "first"
    body = {"metadata": {"name": "prepared", "labels": LABELLED}, "spec": with_init}
    assert f"may not run {FOREIGN}" in former.says_of("pods", body)


def test_a_job_makes_no_training_pods_of_another_image(former: Judged) -> None:
    """Or its controller's pods, which are taken as they come, would be a way round."""
    assert f"may not run {FOREIGN}" in former.says_of("jobs", job("foreign", FOREIGN))
    assert former.says_of("jobs", job("own", FOREIGN, {"app": "web"})) == ""
    former.cluster.client.create(former.team.child_path(), job("later", FOREIGN, {"app": "web"}, suspend=True))
    labelled = {"spec": {"template": {"metadata": {"labels": LABELLED}}}}
    assert f"may not run {FOREIGN}" in former.says("PATCH", former.team.child_path("later"), labelled)


def test_only_the_job_controller_goes_on_with_what_a_job_began_with(former: Judged) -> None:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "tuned", "uid": "1", "controller": True}
    body = {
        "metadata": {"name": "pretended", "labels": LABELLED, "ownerReferences": [owner]},
        "spec": pod_spec(FOREIGN),
    }
    assert f"may not run {FOREIGN}" in former.says_of("pods", body)
