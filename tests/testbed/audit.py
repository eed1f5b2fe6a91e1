"""What the API server's audit log says that service accounts did: the judge of who wrote what, and when."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

WRITING_VERBS = ("create", "update", "patch", "delete", "deletecollection")
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "userGroups": ["system:serviceaccounts"],
            "verbs": list(WRITING_VERBS),
        },
        # And what the operator reads: each of its rights is to be used, and none to be missing.
        {
            "level": "Metadata",
            "userGroups": ["system:serviceaccounts:finetune-system"],
            "verbs": ["get", "list", "watch"],
            "resources": [{"group": group} for group in ("", "batch", "coordination.k8s.io", "finetune-operator.io")],
        },
        # Who makes pods here is the controllers' administrator; what Pod Security says about them stands beside it.
        {"level": "Metadata", "verbs": ["create"], "resources": [{"group": "", "resources": ["pods"]}]},
        {"level": "None"},
    ],
}
_ACCOUNTS = "system:serviceaccount:"
_CREDENTIAL = "authentication.kubernetes.io/credential-id"
_DECISION = "authorization.k8s.io/decision"
_VIOLATIONS = "pod-security.kubernetes.io/audit-violations"


@dataclass(frozen=True)
class Write:
    """One request, most often a writing one, and its answer."""

    time: datetime
    user: str
    credential: str
    verb: str
    group: str
    resource: str
    """With the subresource, as in `finetunejobs/status`."""
    namespace: str
    name: str
    code: int
    authorized: bool
    """False when its user lacks the right; what is authorized may still be refused by admission."""


@dataclass(frozen=True)
class Admission:
    """A pod or a Job that somebody asked for."""

    namespace: str
    resource: str
    violation: str
    """Of the Pod Security Standard that the namespace is labelled to be audited by; empty for none."""


@dataclass(frozen=True)
class AuditLog:
    """The log file; requests stand in it as soon as they are answered."""

    path: Path

    def writes(self, credential: str | None = None, since: datetime | None = None) -> list[Write]:
        """Writes that were accepted, of objects that are stored, without the renewals of leases."""
        return [
            write
            for write in self.requests()
            if write.code < 300
            and write.resource not in ("leases", "tokenreviews", "subjectaccessreviews")
            and credential in (None, write.credential)
            and (since is None or write.time >= since)
        ]

    def requests(self) -> Iterator[Write]:
        """Every writing request of a service account."""
        return (request for request in self.everything() if request.verb in WRITING_VERBS)

    def everything(self) -> Iterator[Write]:
        """The operator's reading requests too."""
        return (_write(event) for event in self._events() if event["user"]["username"].startswith(_ACCOUNTS))

    def admissions(self) -> Iterator[Admission]:
        """Every pod that anybody, and every Job that a service account asked for."""
        for event in self._events():
            target = event.get("objectRef", {})
            if event["verb"] == "create" and target.get("resource") in ("pods", "jobs") and "subresource" not in target:
                violation = event.get("annotations", {}).get(_VIOLATIONS, "")
                yield Admission(target["namespace"], target["resource"], violation)

    def _events(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # the last line, half written


def credential_of(token: str) -> str:
    """The id under which the audit log shows a service account's token."""
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return f"JTI={claims['jti']}"


def _write(event: dict[str, Any]) -> Write:
    user, target = event["user"], event.get("objectRef", {})
    subresource = target.get("subresource")
    return Write(
        time=datetime.fromisoformat(event["requestReceivedTimestamp"]),
        user=user["username"],
        credential=next(iter(user.get("extra", {}).get(_CREDENTIAL, ())), ""),
        verb=event["verb"],
        group=target.get("apiGroup", ""),
        resource=target.get("resource", "") + (f"/{subresource}" if subresource else ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
        authorized=event.get("annotations", {}).get(_DECISION) != "forbid",
    )
