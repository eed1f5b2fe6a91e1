"""A cluster for the operator's tests: API server, controllers, a node that is played, and the operator's RBAC."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from .apiserver import ApiServer
from .binaries import Binaries
from .client import Client, Object, eventually
from .controllers import controllers
from .kubelet import PlayedKubelet
from .operator_process import NAMESPACE, install

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
FINE_TUNE_JOBS = "/apis/finetune-operator.io/v1alpha1"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/finetune-operator"


@dataclass(frozen=True)
class Cluster:
    """Everything but the operator."""

    server: ApiServer
    client: Client
    kubelet: PlayedKubelet
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    @contextmanager
    def start(
        cls, binaries: Binaries, *, beside: Callable[[ApiServer], AbstractContextManager[object]] = nullcontext
    ) -> Iterator[Cluster]:
        """Start all of it; stop it at the end.

        What is to run beside the API server is there before the controllers are, which learn of new kinds late.
        """
        with ApiServer.start(binaries) as server, beside(server):
            install(server)
            client = Client(server)
            with controllers(server), PlayedKubelet(client).running() as kubelet:
                yield cls(server, client, kubelet)

    def namespace(self) -> Namespace:
        """A new namespace under the restricted Pod Security Standard, where pods can be made."""
        return make_namespace(f"team-{next(self._numbers)}", self)

    def release_lease(self) -> None:
        """Have the next operator lead at once, when no other runs."""
        self.client.delete(LEASE)


class AnyCluster(Protocol):
    """A cluster, whatever its node."""

    @property
    def server(self) -> ApiServer:
        """Its API server."""

    @property
    def client(self) -> Client:
        """Its administrator."""


def make_namespace(name: str, cluster: AnyCluster) -> Namespace:
    """A new namespace under the restricted Pod Security Standard, where pods can be made."""
    cluster.client.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": RESTRICTED}})
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    eventually(lambda: cluster.client.find(account), "the namespace's service account")
    return Namespace(name, cluster)


@dataclass(frozen=True)
class Namespace:
    """One namespace: the jobs of one test."""

    name: str
    cluster: AnyCluster

    def path(self, plural: str, name: str = "", prefix: str = "/api/v1") -> str:
        """The path of a kind, or of one object."""
        return f"{prefix}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    def job_path(self, name: str = "") -> str:
        """The path of a FineTuneJob."""
        return self.path("finetunejobs", name, FINE_TUNE_JOBS)

    def child_path(self, name: str = "") -> str:
        """The path of a batch/v1 Job."""
        return self.path("jobs", name, "/apis/batch/v1")

    def apply(self, manifest: Object, name: str, **spec: Any) -> Object:
        """Create a FineTuneJob with some fields of its spec given otherwise."""
        body = copy.deepcopy(manifest)
        body["metadata"] = {"name": name}
        body["spec"] |= spec
        return self.cluster.client.create(self.job_path(), body)

    def job(self, name: str) -> Object:
        """A FineTuneJob."""
        return self.cluster.client.get(self.job_path(name))

    def child(self, name: str, seconds: float = 20.0) -> Object:
        """The Job of a FineTuneJob, when it is there."""
        return eventually(lambda: self.cluster.client.find(self.child_path(name)), f"the Job of {name}", seconds)

    def pods(self, job: str) -> list[Object]:
        """Every pod of a FineTuneJob."""
        return self.cluster.client.items(self.path("pods") + f"?labelSelector=finetune-operator.io/job-name={job}")

    def bound_pod(self, job: str) -> Object:
        """The one pod of a FineTuneJob that has a node and has not ended."""

        def look() -> Object | None:
            living = [pod for pod in self.pods(job) if pod["status"]["phase"] in ("Pending", "Running")]
            bound = [pod for pod in living if "nodeName" in pod["spec"] and "deletionTimestamp" not in pod["metadata"]]
            return bound[0] if len(bound) == 1 else None

        return eventually(look, f"a bound pod of {job}")

    def condition(self, job: str, type_: str) -> Object:
        """One condition of a FineTuneJob; empty when it is not there."""
        found: list[Object] = self.job(job).get("status", {}).get("conditions", [])
        return next((condition for condition in found if condition["type"] == type_), {})

    def until(self, job: str, type_: str, reason: str = "", status: str = "True", seconds: float = 20.0) -> Object:
        """Wait for a condition with that status and reason; returns it."""
        seen: Object = {}

        def look() -> Object | None:
            seen.clear()
            seen.update(self.condition(job, type_))
            return seen if seen.get("status") == status and reason in ("", seen["reason"]) else None

        try:
            return eventually(look, f"{job} {type_}={status} {reason}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {seen}") from None

    def volume(self, claim: str, *, make_claim: bool = True, folder: str = "") -> None:
        """A volume for a claim, and the claim itself unless somebody else makes it. Real nodes use its folder."""
        space = {"storage": "1Gi"}
        spec = {
            "capacity": space,
            "accessModes": ["ReadWriteOnce"],
            "hostPath": {"path": folder or f"/played/{self.name}/{claim}"},
            "claimRef": {"namespace": self.name, "name": claim},
        }
        self.cluster.client.create(
            "/api/v1/persistentvolumes", {"metadata": {"name": f"{self.name}-{claim}"}, "spec": spec}
        )
        if make_claim:
            body = {
                "metadata": {"name": claim},
                "spec": {
                    "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": space},
                    "volumeName": f"{self.name}-{claim}",
                },
            }
            self.cluster.client.create(self.path("persistentvolumeclaims"), body)
