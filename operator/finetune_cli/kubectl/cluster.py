"""Reads a cluster with the rights of whoever runs the command; every error says what to do."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Self

from kubernetes import client
from urllib3.exceptions import HTTPError

from finetune_api.v1alpha1 import GROUP, PLURAL
from finetune_cli.kubectl.kubeconfig import NoCluster, find_cluster
from finetune_operator.cluster.client import FINE_TUNE_JOBS, PODS, Resource
from finetune_operator.plan.names import CONTAINER, JOB_NAME_LABEL

Object = Mapping[str, Any]

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 60
_WATCH_SECONDS = 240
"""The API server ends a watch after this long, and the next one goes on from there."""
_SILENT_SECONDS = _WATCH_SECONDS + 30
"""A connection that says nothing for longer than a watch can last is dead."""
_RETRY_SECONDS = 2.0
_OUTAGE_SECONDS = 60.0
_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_SERVERS_OWN = HTTPStatus.INTERNAL_SERVER_ERROR
"""Errors from here on are not the request's."""
_PAGE = 500
_NEAR = 5


class ClusterProblem(Exception):
    """The cluster cannot answer; the message says why and what to do."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None when there was no answer at all."""


@dataclass(frozen=True, slots=True)
class Change:
    """A job as it is now, or None once it is gone."""

    namespace: str
    name: str
    job: Object | None


class Cluster:
    """One API server, as one user."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._api = api
        self.namespace = namespace
        """The namespace to look in where none is named."""

    @classmethod
    def connect(cls, kubeconfig: str | None, context: str | None) -> Self:
        """The cluster that kubectl would ask. Raises ClusterProblem."""
        try:
            configuration, namespace = find_cluster(kubeconfig, context)
        except NoCluster as error:
            todo = "set KUBECONFIG, or give --kubeconfig and --context as to kubectl"
            raise ClusterProblem(f"no cluster: {error}; {todo}") from None
        configuration.retries = False  # an unreachable server is said at once
        return cls(client.ApiClient(configuration), namespace)

    def job(self, namespace: str, name: str) -> Object:
        """A FineTuneJob; when there is none, the message has the nearest names."""
        try:
            return self._get(FINE_TUNE_JOBS.path(namespace, name))
        except ClusterProblem as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        names = [str(job["metadata"]["name"]) for job in self.jobs(namespace)]
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            hint = f"did you mean {near[0]}?"
        elif names:
            hint = f"there are {', '.join(names[:_NEAR])}{', ...' if len(names) > _NEAR else ''}"
        else:
            hint = "that namespace has none; name another with -n, or see all of them with: kubectl finetune list -A"
        raise ClusterProblem(f"no FineTuneJob {name} in namespace {namespace}; {hint}")

    def jobs(self, namespace: str | None) -> list[Object]:
        """Every FineTuneJob of a namespace, or of all."""
        return self._list(FINE_TUNE_JOBS, namespace)[0]

    def pods(self, namespace: str, job: str) -> list[Object]:
        """Every pod of a FineTuneJob, in the order of their creation."""
        found, _ = self._list(PODS, namespace, labelSelector=f"{JOB_NAME_LABEL}={job}")
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def events(self, namespace: str, names: Iterable[str]) -> list[Object]:
        """The Events about objects of these names, in the order they happened."""
        wanted = set(names)
        found, _ = self._list(Resource("/api/v1", "events"), namespace)
        mine = [event for event in found if event.get("involvedObject", {}).get("name") in wanted]
        return sorted(mine, key=event_time)

    def log(self, namespace: str, pod: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        """The lines of a trainer's log, to its end, or as far as it is."""
        query = {"container": CONTAINER, "follow": str(follow).lower()}
        if tail is not None:
            query["tailLines"] = str(tail)
        response = self._request(PODS.path(namespace, pod, "log"), query, None if follow else _ANSWER_SECONDS)
        yield from (line.decode(errors="replace") for line in _lines(response))

    def follow(self, namespace: str | None, name: str | None = None) -> Iterator[Change | None]:
        """Jobs as they are and then each change, for ever; None once all that there were have been told."""
        return _Follower(self, namespace, {"fieldSelector": f"metadata.name={name}"} if name else {}).changes()

    def list_jobs(self, namespace: str | None, query: Mapping[str, str]) -> tuple[list[Object], str]:
        """The FineTuneJobs of a query, and the version that a watch goes on from."""
        return self._list(FINE_TUNE_JOBS, namespace, **query)

    def watch_jobs(self, namespace: str | None, version: str, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Watch events since a version, until the API server ends the watch."""
        watching = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        response = self._request(FINE_TUNE_JOBS.path(namespace), {**query, **watching}, _SILENT_SECONDS)
        yield from (json.loads(line) for line in _lines(response))

    def _list(self, resource: Resource, namespace: str | None, **query: str) -> tuple[list[Object], str]:
        """Every object of a kind, page by page, and the version that a watch goes on from."""
        found: list[Object] = []
        token = ""
        while True:
            more = {"continue": token} if token else {}
            page = self._get(resource.path(namespace), {**query, **more, "limit": str(_PAGE)})
            found += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return found, page["metadata"]["resourceVersion"]

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        response = self._request(path, query or {}, _ANSWER_SECONDS)
        answer: dict[str, Any] = json.loads(b"".join(_chunks(response)))
        return answer

    def _request(self, path: str, query: Mapping[str, str], seconds: float | None) -> Any:
        """The answer, not read yet. Raises ClusterProblem."""
        request = self._api.param_serialize(
            "GET",
            path,
            query_params=list(query.items()),
            header_params={"Accept": "*/*"},
            auth_settings=["BearerToken"],
        )
        try:
            response = self._api.call_api(*request, _request_timeout=(_CONNECT_SECONDS, seconds)).response
        except client.ApiException as error:  # the transport's
            raise self._unreachable(error.reason) from None
        except (HTTPError, OSError) as error:
            raise self._unreachable(error) from None
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise _refused(path, response.status, response.data)
        return response

    def _unreachable(self, error: object) -> ClusterProblem:
        host = self._api.configuration.host
        return ClusterProblem(
            f"the cluster at {host} does not answer: {error}; is it up, and is this the right context?"
        )


class _Follower:
    """A list and then watches, one after the other, over connections that break."""

    def __init__(self, cluster: Cluster, namespace: str | None, query: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._query = query
        self._known: dict[tuple[str, str], Object] = {}
        self._version = ""
        """What was told last; empty when all has to be listed anew."""
        self._failing_since: float | None = None

    def changes(self) -> Iterator[Change | None]:
        """See Cluster.follow."""
        while True:
            try:
                if not self._version:
                    yield from self._listed()
                    yield None
                yield from self._watched()
                self._failing_since = None
            except ClusterProblem as error:
                self._wait_after(error)

    def _listed(self) -> Iterator[Change]:
        found, self._version = self._cluster.list_jobs(self._namespace, self._query)
        now = {_key(job): job for job in found}
        gone = self._known.keys() - now.keys()
        self._known = now
        yield from (Change(*key, None) for key in gone)
        yield from (Change(*key, job) for key, job in now.items())

    def _watched(self) -> Iterator[Change]:
        for event in self._cluster.watch_jobs(self._namespace, self._version, self._query):
            self._failing_since = None
            if event["type"] == "ERROR":  # most often the version is too old
                self._version = ""
                return
            job = event["object"]
            self._version = job["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                self._known.pop(_key(job), None)
                yield Change(*_key(job), None)
            elif event["type"] != "BOOKMARK":
                self._known[_key(job)] = job
                yield Change(*_key(job), job)

    def _wait_after(self, error: ClusterProblem) -> None:
        """Wait before the next try. Raises the error when another try is of no use, or too many were."""
        if error.status == HTTPStatus.GONE:
            self._version = ""
        elif error.status is not None and error.status not in _BUSY and error.status < _SERVERS_OWN:
            raise error
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if not self._known or now - self._failing_since > _OUTAGE_SECONDS:
            raise error
        time.sleep(_RETRY_SECONDS)


def event_time(event: Object) -> datetime:
    """When an Event last happened."""
    series = event.get("series") or {}
    return datetime.fromisoformat(
        series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
        or event["metadata"]["creationTimestamp"]
    )  # fmt: skip


def _key(job: Object) -> tuple[str, str]:
    return job["metadata"]["namespace"], job["metadata"]["name"]


def _refused(path: str, status: int, data: bytes) -> ClusterProblem:
    try:
        message = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        message = data[:200].decode(errors="replace")
    if status == HTTPStatus.UNAUTHORIZED:
        message = "the cluster does not accept your credentials; log in as for kubectl"
    elif status == HTTPStatus.FORBIDDEN:
        message = f"you may not do this: {message}; ask the cluster's administrator for the right"
    elif status == HTTPStatus.NOT_FOUND and path.split("/")[-1] == PLURAL:
        message = (
            f"this cluster has no FineTuneJobs: the CRD {PLURAL}.{GROUP} is not installed; "
            "install the operator (docs/operator.md), or choose another cluster with --context"
        )
    return ClusterProblem(message, status)


def _chunks(response: Any) -> Iterator[bytes]:
    """The body as it comes in; a broken connection is a ClusterProblem."""
    try:
        yield from response.stream(2**16)
    except (HTTPError, OSError) as error:
        raise ClusterProblem(f"the connection to the cluster broke: {error}") from None
    finally:
        response.release_conn()


def _lines(response: Any) -> Iterator[bytes]:
    """Complete lines as they come in."""
    partial = b""
    for chunk in _chunks(response):
        *lines, partial = (partial + chunk).split(b"\n")
        yield from lines
    if partial:
        yield partial
