"""What the engine asks of Kubernetes, and its errors sorted by what to do about them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from finetune_api.v1alpha1 import GROUP, PLURAL, VERSION

KubernetesObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object, by its path."""

    prefix: str
    """`/api/v1` or `/apis/GROUP/VERSION`."""
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of one object, of a namespace's, or of all."""
        parts = [self.prefix]
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        return "/".join([*parts, *(part for part in (name, subresource) if part)])


FINE_TUNE_JOBS = Resource(f"/apis/{GROUP}/{VERSION}", PLURAL)
JOBS = Resource("/apis/batch/v1", "jobs")
PODS = Resource("/api/v1", "pods")
SERVICES = Resource("/api/v1", "services")
CLAIMS = Resource("/api/v1", "persistentvolumeclaims")
EVENTS = Resource("/apis/events.k8s.io/v1", "events")
TOKEN_REVIEWS = Resource("/apis/authentication.k8s.io/v1", "tokenreviews")
SUBJECT_ACCESS_REVIEWS = Resource("/apis/authorization.k8s.io/v1", "subjectaccessreviews")

RESOURCE_OF_KIND = {"Job": JOBS, "Service": SERVICES, "PersistentVolumeClaim": CLAIMS}


class ClusterError(Exception):
    """A request failed; it may pass when repeated."""


class AlreadyThere(ClusterError):
    """An object of that name is there already."""


class Conflict(ClusterError):
    """The object has changed, or something that the API server had to change with it, such as a quota's count."""


class Gone(ClusterError):
    """The object is not there."""


class Refused(ClusterError):
    """The API server refuses the request, and will again: invalid, forbidden, over quota."""


class WebhookFailed(ClusterError):
    """A webhook that the API server asks does not answer: it passes when somebody mends that."""


class Unreached(ClusterError):
    """The API server did not get to the request: it is overloaded or away, or the answer was lost."""


class Cluster(Protocol):
    """The requests of the engine. Every method raises ClusterError."""

    def list_pages(
        self, resource: Resource, label_selector: str = "", namespace: str | None = None
    ) -> AsyncIterator[list[KubernetesObject]]:
        """Every object of a kind in a namespace, or in all that are watched, in pages."""

    async def create(self, resource: Resource, namespace: str, body: KubernetesObject) -> KubernetesObject:
        """Create an object; AlreadyThere when the name is taken."""

    async def get(self, resource: Resource, namespace: str, name: str) -> KubernetesObject:
        """Read one object."""

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, body: KubernetesObject, subresource: str | None = None
    ) -> KubernetesObject:
        """Change some fields of an object."""

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        preconditions: Mapping[str, str],
        *,
        foreground: bool = False,
    ) -> None:
        """Delete an object with this `uid` (and `resourceVersion`); in the foreground, after its dependents."""
