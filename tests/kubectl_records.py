"""A cluster's answers, recorded, for the tests of the kubectl plugin."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from contract_cases import valid_job
from finetune_cli.kubectl.cluster import Change

Object = dict[str, Any]


def job(name: str = "router", phase: str = "", reason: str = "", message: str = "", **status: Any) -> Object:
    """A FineTuneJob as the API server returns it."""
    body = valid_job()
    body["metadata"] = {"name": name, "namespace": "team", "creationTimestamp": "2026-01-02T03:00:00Z"}
    if phase:
        type_ = "Reconciling" if phase == "Pending" else phase
        condition = {
            "type": type_, "status": "True", "reason": reason or phase, "message": message,
            "lastTransitionTime": "2026-01-02T03:04:05Z",
        }  # fmt: skip
        body["status"] = {"phase": phase, "conditions": [condition], **status}
    return body


def progress(step: int, **more: Any) -> Object:
    return {"step": step, "totalSteps": 100, "percent": step, "loss": f"{1 - step / 200}", "etaSeconds": 90, **more}


def pod(name: str, job_uid: str = "now", index: str = "0", **state: Any) -> Object:
    return {
        "metadata": {
            "name": name, "uid": name, "creationTimestamp": "2026-01-02T03:04:05Z",
            "ownerReferences": [{"uid": job_uid, "controller": True}],
            "annotations": {"batch.kubernetes.io/job-completion-index": index},
        },
        "status": {"phase": "Running", "containerStatuses": [{"name": "trainer", "image": "i", "state": state}]},
    }  # fmt: skip


RAN = {"startedAt": "2026-01-02T03:04:05Z"}


class Recorded:
    """A cluster's answers, recorded."""

    namespace = "team"

    def __init__(self, *jobs: Object, pods: tuple[Object, ...] = (), events: tuple[Object, ...] = ()) -> None:
        self._jobs, self._pods, self._events = list(jobs), list(pods), list(events)
        self.logs: dict[str, list[str]] = {}
        self.changes: list[Change | None] = []

    def job(self, namespace: str, name: str) -> Object:
        return next(each for each in self._jobs if each["metadata"]["name"] == name)

    def jobs(self, namespace: str | None) -> list[Object]:
        return self._jobs

    def pods(self, namespace: str, job: str) -> list[Object]:
        return self._pods

    def events(self, namespace: str, names: object) -> list[Object]:
        return self._events

    def log(self, namespace: str, pod: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        yield from self.logs[pod]

    def follow(self, namespace: str | None, name: str | None = None) -> Iterator[Change | None]:
        yield from self.changes
        pytest.fail("the watch went on though nothing was left to wait for")


def change(body: Object) -> Change:
    return Change("team", body["metadata"]["name"], body)


def console() -> Console:
    return Console(file=io.StringIO(), width=160)


def said(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()
