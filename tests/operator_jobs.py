"""The FineTuneJobs of the operator's tests, what their trainers report, and what they say last."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from contract_cases import Manifest, valid_job
from testbed.client import Object
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import service_account_token

AUDIENCE = "finetune-operator.io/progress"


def job(**spec: Any) -> Manifest:
    """A small job on CPU, whose output is on no claim that would have to be there."""
    manifest = valid_job()
    manifest["spec"] |= {"resources": {"gpusPerNode": 0}, "output": {"uri": "s3://models/tuned"}, **spec}
    return manifest


def last_words(exit_code: int, reason: str, message: str, **more: Any) -> Object:
    """A trainer's termination message."""
    return {"exitCode": exit_code, "reason": reason, "message": message, **more}


COMPLETE = last_words(
    0,
    "Complete",
    "trained 20 of 20 steps",
    progress={"step": 20, "totalSteps": 20, "percent": 100, "loss": "0.25", "etaSeconds": 0},
    result={
        "uri": "s3://models/tuned",
        "digest": f"sha256:{'0' * 64}",
        "metric": "accuracy",
        "before": {"accuracy": "0.5"},
        "after": {"accuracy": "0.75"},
        "trainableParameters": 10,
        "totalParameters": 100,
        "steps": 20,
        "durationSeconds": "2.5",
    },
)


def report(step: int, total: int = 100, *, eta: int | None = None, **metrics: float | str) -> bytes:
    """A progress report's body."""
    values = {"current_step": step, "total_steps": total, **metrics}
    status = {
        "progressPercentage": step * 100 // total,
        "metrics": [{"name": name, "value": str(value)} for name, value in values.items()],
        "lastUpdatedTime": datetime.now(UTC).isoformat(),
    }
    if eta is not None:
        status["estimatedRemainingSeconds"] = eta
    return json.dumps({"trainerStatus": status}).encode()


def report_path(namespace: Namespace, name: str) -> str:
    """Where a job's progress goes."""
    return f"/v1/{namespace.name}/{name}"


def pod_token(cluster: Cluster, namespace: Namespace, pod: Object, audience: str = AUDIENCE) -> str:
    """A token as the kubelet projects it into a pod."""
    metadata = pod["metadata"]
    bound = ("--bound-object-kind=Pod", f"--bound-object-name={metadata['name']}")
    return service_account_token(
        cluster.server,
        f"--audience={audience}",
        *bound,
        f"--bound-object-uid={metadata['uid']}",
        account="default",
        namespace=namespace.name,
    )


def run_to_completion(cluster: Cluster, namespace: Namespace, name: str) -> None:
    """Have a job's pod run and end well."""
    pod = namespace.bound_pod(name)
    cluster.kubelet.run(pod)
    namespace.until(name, "Running")
    cluster.kubelet.end(pod, 0, message=COMPLETE)
    namespace.until(name, "Complete")


def events_of(namespace: Namespace, name: str) -> list[str]:
    """The reasons of the Events about a FineTuneJob, in the order they happened."""
    events = namespace.cluster.client.items(namespace.path("events", prefix="/apis/events.k8s.io/v1"))
    about = [event for event in events if event["regarding"].get("kind") == "FineTuneJob"]
    mine = [event for event in about if event["regarding"]["name"] == name]
    return [event["reason"] for event in sorted(mine, key=lambda event: str(event["eventTime"]))]
