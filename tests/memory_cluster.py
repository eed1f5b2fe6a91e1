"""Stands in for the API server only because thousands of orders of events must run in seconds.

The integration tests run the same engine against the real one. It keeps the rules that the engine builds on: a name
is taken once, `resourceVersion` and `uid` in a patch are preconditions, a merge patch is RFC 7386's, `status` is a
subresource, a change of spec is a new generation, deletion in the foreground waits for what the object owns, and what
an object owns goes with it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from finetune_operator.cluster.client import (
    FINE_TUNE_JOBS,
    JOBS,
    PODS,
    AlreadyThere,
    Conflict,
    Gone,
    KubernetesObject,
    Resource,
)

PAGE_SIZE = 2
_FOREGROUND = "foregroundDeletion"
WATCHED = (FINE_TUNE_JOBS, JOBS, PODS)

Object = dict[str, Any]


class MemoryCluster:
    """Objects by kind, namespace and name. `watch` is told of every change of what an operator watches."""

    def __init__(
        self,
        now: Callable[[], datetime],
        watch: Callable[[Resource, str, Object], None] = lambda resource, type_, body: None,
    ) -> None:
        self._now = now
        self._watch = watch
        self._objects: dict[Resource, dict[tuple[str, str], Object]] = {}
        self._version = 100
        self._uids = 0

    # ---- the requests of the engine ----

    async def list_pages(
        self, resource: Resource, label_selector: str = "", namespace: str | None = None
    ) -> AsyncIterator[list[KubernetesObject]]:
        label, _, value = label_selector.partition("=")
        found = [
            body
            for body in self.objects(resource)
            if namespace in (None, body["metadata"]["namespace"])
            and (not label or body["metadata"].get("labels", {}).get(label) == value)
        ]
        for start in range(0, max(1, len(found)), PAGE_SIZE):
            yield [_copy(body) for body in found[start : start + PAGE_SIZE]]

    async def create(self, resource: Resource, namespace: str, body: KubernetesObject) -> KubernetesObject:
        return self.add(resource, {**body, "metadata": {**body["metadata"], "namespace": namespace}})

    async def get(self, resource: Resource, namespace: str, name: str) -> KubernetesObject:
        return _copy(self._found(resource, namespace, name))

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, body: KubernetesObject, subresource: str | None = None
    ) -> KubernetesObject:
        stored = self._found(resource, namespace, name)
        _check_preconditions(stored, body.get("metadata", {}))
        part = subresource or "spec"
        return self.change(
            resource, stored, lambda new: new.update({part: apply_merge_patch(new.get(part), body[part])})
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        preconditions: Mapping[str, str],
        *,
        foreground: bool = False,
    ) -> None:
        stored = self._found(resource, namespace, name)
        _check_preconditions(stored, preconditions)
        if not foreground:
            self.remove(resource, stored)
        elif "deletionTimestamp" not in stored["metadata"]:
            self.change(resource, stored, lambda new: new["metadata"].update(finalizers=[_FOREGROUND], **self._going()))

    # ---- the world's side ----

    @property
    def version(self) -> int:
        """How many writes there were, and where they began."""
        return self._version

    def add(self, resource: Resource, body: Object) -> Object:
        """Create an object; AlreadyThere when the name is taken."""
        metadata = body["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if key in self._objects.setdefault(resource, {}):
            raise AlreadyThere(f"{resource.plural} {metadata['name']} already exists")
        self._uids += 1
        created = _copy(body)
        created["metadata"] |= {
            "uid": f"{metadata['name']}-uid-{self._uids}",
            "resourceVersion": self._next_version(),
            "generation": 1,
            "creationTimestamp": _text(self._now()),
        }
        self._objects[resource][key] = created
        self._tell(resource, "ADDED", created)
        return _copy(created)

    def change(self, resource: Resource, stored: Object, edit: Callable[[Object], object]) -> Object:
        """Edit a stored object. An edit that changes nothing is no write, as on the API server."""
        new = _copy(stored)
        edit(new)
        if new == stored:
            return new
        if new.get("spec") != stored.get("spec"):
            new["metadata"]["generation"] += 1
        new["metadata"]["resourceVersion"] = self._next_version()
        self._objects[resource][_key(stored)] = new
        self._tell(resource, "MODIFIED", new)
        return _copy(new)

    def begin_deletion(self, resource: Resource, stored: Object) -> None:
        """Delete a pod gracefully: it is there until it has stopped."""
        if "deletionTimestamp" not in stored["metadata"]:
            self.change(resource, stored, lambda new: new["metadata"].update(self._going()))

    def remove(self, resource: Resource, stored: Object) -> None:
        """The object is gone."""
        gone = self._objects[resource].pop(_key(stored))
        gone["metadata"]["resourceVersion"] = self._next_version()
        self._tell(resource, "DELETED", gone)

    def objects(self, resource: Resource) -> list[Object]:
        """The stored objects of a kind; to be edited by `change` only."""
        return list(self._objects.get(resource, {}).values())

    def find(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """A stored object."""
        return self._objects.get(resource, {}).get((namespace, name))

    def collect_garbage(self) -> None:
        """What an object owned goes with it; what is deleted in the foreground goes after what it owns."""
        living = {body["metadata"]["uid"] for resource in self._objects for body in self.objects(resource)}
        for resource in (JOBS, PODS):
            for body in self.objects(resource):
                owners = list(_owners(body))
                if owners and not living.intersection(owners):
                    if resource == PODS:
                        self.begin_deletion(PODS, body)
                    else:
                        self.remove(resource, body)
        for job in self.objects(JOBS):
            if _FOREGROUND in job["metadata"].get("finalizers", ()):
                pods = [pod for pod in self.objects(PODS) if job["metadata"]["uid"] in _owners(pod)]
                for pod in pods:
                    self.begin_deletion(PODS, pod)
                if not pods:
                    self.remove(JOBS, job)

    def _found(self, resource: Resource, namespace: str, name: str) -> Object:
        stored = self.find(resource, namespace, name)
        if stored is None:
            raise Gone(f"{resource.plural} {name} not found")
        return stored

    def _going(self) -> Object:
        return {"deletionTimestamp": _text(self._now())}

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)

    def _tell(self, resource: Resource, type_: str, body: Object) -> None:
        if resource in WATCHED:
            self._watch(resource, type_, _copy(body))


def _copy(body: KubernetesObject) -> Object:
    copied: Object = json.loads(json.dumps(body))  # what went over a wire, and faster than deepcopy
    return copied


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """MergePatch of RFC 7386, section 2, as it stands there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply_merge_patch(result.get(name), value)
    return result


def _check_preconditions(stored: Object, wanted: Mapping[str, Any]) -> None:
    for field in ("uid", "resourceVersion"):
        if wanted.get(field) not in (None, stored["metadata"][field]):
            raise Conflict(f"{field} is {stored['metadata'][field]}, not {wanted[field]}")


def _owners(body: Object) -> Iterator[str]:
    return (owner["uid"] for owner in body["metadata"].get("ownerReferences", ()))


def _key(body: Object) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
