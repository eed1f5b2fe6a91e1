"""What the operator does rarely, brought about on any of the beds: by these acts every right of it is used."""

from __future__ import annotations

import http
from collections.abc import Callable

from account_rights import requests
from testbed.client import Object, eventually
from testbed.cluster import Namespace
from testbed.operator_process import OperatorProcess, service_account_token

Apply = Callable[..., object]
"""Applies a job of that name, with fields of its spec given otherwise."""


def delete_a_queued_job(namespace: Namespace, apply: Apply) -> None:
    """A Job under a queue cannot be suspended by anybody but the queue: it is deleted."""
    client = namespace.cluster.client
    apply("queued", queueName="research")
    namespace.until("queued", "Queued")
    client.patch(namespace.job_path("queued"), {"spec": {"suspend": True}})
    namespace.until("queued", "Suspended")
    eventually(lambda: client.find(namespace.child_path("queued")) is None, "the queued Job is deleted")


def meet_a_foreign_job(namespace: Namespace, apply: Apply) -> None:
    """The Job is read, and so is the FineTuneJob when somebody else's writes make the operator's own conflict."""
    client, audit = namespace.cluster.client, namespace.cluster.server.audit
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]}}
    foreign: Object = {"metadata": {"name": "taken"}, "spec": {"suspend": True, "template": template}}
    client.create(namespace.child_path(), foreign)
    apply("taken")
    namespace.until("taken", "Reconciling", "ChildNameTaken")

    def conflicted() -> bool:
        for value in range(20):
            client.patch(namespace.job_path("taken"), {"spec": {"ttlSecondsAfterFinished": value + 100}})
        return any((r.verb, r.resource) == ("get", "finetunejobs") for r in requests(audit))

    eventually(conflicted, "a conflict", 30)


def judge_a_scrape(namespace: Namespace, make_operator: Callable[..., OperatorProcess]) -> None:
    """A replica whose metrics have a certificate asks whose a token is, and what that user may."""
    server = namespace.cluster.server
    pair = {"metrics_certificate": str(server.ca_file), "metrics_key": str(server.key_file)}
    with make_operator("scraped", **pair).running(leading=False) as replica:
        token = service_account_token(server, account="default", namespace=namespace.name)
        assert replica.scrape(token)[0] == http.HTTPStatus.FORBIDDEN
