"""The cluster through the official client's asyncio transport, with plain dicts as bodies."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException

from finetune_operator.cluster.client import (
    AlreadyThere,
    ClusterError,
    Conflict,
    Gone,
    KubernetesObject,
    Refused,
    Resource,
    Unreached,
    WebhookFailed,
)

PAGE_SIZE = 100
_REQUEST_SECONDS = 30
_MERGE_PATCH = "application/merge-patch+json"
_ALREADY_EXISTS = "AlreadyExists"
_WEBHOOK = "webhook"
_STORE_LATE = ("etcdserver:", "timed out", "context deadline exceeded")
"""What stands in an internal error where the API server's own store is away or slow."""
_ERROR_OF_STATUS: dict[int, type[ClusterError]] = {
    400: Refused, 401: ClusterError, 403: Refused, 404: Gone, 409: Conflict, 410: Gone, 422: Refused,
    408: Unreached, 429: Unreached, 502: Unreached, 503: Unreached, 504: Unreached,
}  # fmt: skip


class KubernetesCluster:
    """One API server. `may_write` is asked before every write: a replica that no longer leads must not."""

    def __init__(
        self,
        api: ApiClient,
        namespace: str | None = None,
        may_write: Callable[[], bool] = lambda: True,
        count: Callable[[str, str], None] = lambda method, code: None,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._may_write = may_write
        self._count = count

    async def list_pages(
        self, resource: Resource, label_selector: str = "", namespace: str | None = None
    ) -> AsyncIterator[list[KubernetesObject]]:
        """Every object of a kind, a page at a time."""
        token = ""
        while True:
            query = [("limit", str(PAGE_SIZE)), ("labelSelector", label_selector), ("continue", token)]
            page = await self._request(
                "GET", resource.path(namespace or self._namespace), query=[q for q in query if q[1]]
            )
            yield page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def create(self, resource: Resource, namespace: str, body: KubernetesObject) -> KubernetesObject:
        """Create an object."""
        return await self._request("POST", resource.path(namespace), body=body)

    async def get(self, resource: Resource, namespace: str, name: str) -> KubernetesObject:
        """Read one object."""
        return await self._request("GET", resource.path(namespace, name))

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, body: KubernetesObject, subresource: str | None = None
    ) -> KubernetesObject:
        """Change some fields."""
        path = resource.path(namespace, name, subresource)
        return await self._request("PATCH", path, body=body, content_type=_MERGE_PATCH)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        preconditions: Mapping[str, str],
        *,
        foreground: bool = False,
    ) -> None:
        """Delete with preconditions: a successor under the same name is never hit."""
        # All in the body: beside one the query is not read, and what a Job's own default does is to orphan its pods.
        policy = "Foreground" if foreground else "Background"
        options = {"preconditions": preconditions, "propagationPolicy": policy}
        body = {"kind": "DeleteOptions", "apiVersion": "v1", **options}
        await self._request("DELETE", resource.path(namespace, name), body=body)

    async def post(self, resource: Resource, body: KubernetesObject) -> KubernetesObject:
        """Create an object that has no namespace and is not stored, such as a TokenReview; no leader is needed."""
        return await self._request("POST", resource.path(), body=body, fenced=False)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: KubernetesObject | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
        fenced: bool = True,
    ) -> dict[str, Any]:
        if fenced and method != "GET" and not self._may_write():
            raise Unreached("this replica does not lead, and writes nothing")
        request = await self._api.param_serialize(
            method,
            path,
            query_params=query or [],
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._api.call_api(*request, _request_timeout=_REQUEST_SECONDS)
            data: bytes = await response.read()
        except ApiException as error:
            self._count(method, str(error.status))
            raise _error(error.status or 0, error.body or b"", str(error.reason)) from None
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._count(method, "<error>")
            raise Unreached(f"{type(error).__name__}: {error}") from None
        self._count(method, str(response.status))
        if response.status >= 400:
            raise _error(response.status, data)
        answer: dict[str, Any] = json.loads(data)
        return answer


def _error(status: int, data: bytes | str, otherwise: str = "") -> ClusterError:
    """The error that an answer stands for, in the words of its Status object where it has one."""
    try:
        told = json.loads(data)
        message, reason = str(told["message"]), told.get("reason")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, reason = (data.decode(errors="replace") if isinstance(data, bytes) else data)[:200], None
    return _kind(status, message, reason)(message or otherwise)


def _kind(status: int, message: str, reason: str | None) -> type[ClusterError]:
    """The code alone does not tell: it is 409 too where two requests count against one quota at the same time."""
    if reason == _ALREADY_EXISTS:
        return AlreadyThere
    if status == 500 and _WEBHOOK in message:
        return WebhookFailed
    if status == 500 and any(words in message for words in _STORE_LATE):
        return Unreached
    return _ERROR_OF_STATUS.get(status, ClusterError)
