"""A queue of Kueue in a test's namespace, with a quota of its own, and what Kueue says of the jobs in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .client import Client, Object
from .cluster import Namespace

_VERSION = "kueue.x-k8s.io/v1beta2"
API = f"/apis/{_VERSION}"
_FLAVOR = "any-node"


def make_flavor(client: Client) -> None:
    """The kind of nodes that every quota here is of."""
    client.create(f"{API}/resourceflavors", _object("ResourceFlavor", _FLAVOR, {}))


@dataclass(frozen=True)
class Queue:
    """A LocalQueue and the ClusterQueue behind it."""

    namespace: Namespace
    name: str

    @classmethod
    def make(cls, namespace: Namespace, name: str, cpu: int, **spec: Any) -> Queue:
        """A queue with so many CPUs to give away, and more fields of the ClusterQueue's spec."""
        queue = cls(namespace, name)
        client = namespace.cluster.client
        body = _object("ClusterQueue", queue.cluster_name, {"namespaceSelector": {}, **quota(cpu), **spec})
        client.create(f"{API}/clusterqueues", body)
        local = _object("LocalQueue", name, {"clusterQueue": queue.cluster_name})
        client.create(namespace.path("localqueues", prefix=API), local)
        return queue

    @property
    def cluster_name(self) -> str:
        """The ClusterQueue's."""
        return f"{self.namespace.name}-{self.name}"

    def change(self, **spec: Any) -> None:
        """Change fields of the ClusterQueue's spec."""
        self.namespace.cluster.client.patch(f"{API}/clusterqueues/{self.cluster_name}", {"spec": spec})

    def used(self) -> str:
        """The CPUs that are given away now."""
        status = self.namespace.cluster.client.get(f"{API}/clusterqueues/{self.cluster_name}").get("status", {})
        return next((str(usage["resources"][0]["total"]) for usage in status.get("flavorsUsage", ())), "")


def quota(cpu: int) -> Object:
    """The fields of a ClusterQueue's spec that give away so many CPUs."""
    resources = [{"name": "cpu", "nominalQuota": cpu}]
    return {
        "resourceGroups": [
            {"coveredResources": ["cpu"], "flavors": [{"name": _FLAVOR, "resources": resources}]},
        ]
    }


def workloads(namespace: Namespace) -> list[Object]:
    """Every Workload of a namespace."""
    return namespace.cluster.client.items(namespace.path("workloads", prefix=API))


def workload(namespace: Namespace, job: str) -> Object | None:
    """The Workload of a Job, when there is one."""
    owned = (found for found in workloads(namespace) if found["metadata"]["ownerReferences"][0]["name"] == job)
    return next(owned, None)


def verdict(namespace: Namespace, job: str, type_: str) -> Object:
    """A condition of a Job's Workload; empty when it is not there."""
    found = workload(namespace, job) or {}
    conditions: list[Object] = found.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == type_), {})


def _object(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": _VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
