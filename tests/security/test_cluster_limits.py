"""Large specs, statuses and numbers of jobs: what is bounded, and that quotas are respected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_api.manifest import parse_spec
from finetune_operator.plan import names
from finetune_operator.plan.run import make_run
from operator_jobs import job, last_words, pod_token, report, report_path
from testbed.client import Object, RequestError, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.security(24), pytest.mark.usefixtures("operator")]

MIB = 2**20
WIDE = "\N{GRINNING FACE}"
"""Four bytes."""
LABELS = {
    f"{'d' * 60}.{'e' * 60}.{'f' * 60}.{'g' * 60}.example/{'n' * 60}-{number:02}": "v" * 63 for number in range(16)
}
LARGEST_STATUS = 64 * 1024


def largest() -> Object:
    """A valid job with about as much in it as the schema lets in."""

    def uri(scheme: str = "file:///") -> dict[str, Any]:
        return {"uri": scheme + WIDE * (1024 - len(scheme))}

    keys = [f"{key[:-2]}{number:02}" for number, key in enumerate(LABELS)]
    adapter = {
        "type": "LoRA",
        "targetModules": [f"{WIDE * 125}{number:03}" for number in range(32)],
        "stackOn": [uri()] * 8,
    }
    variables = [
        {"name": f"V{number:02}{'A' * 121}_KEY", "secret": ".".join(["s" * 63] * 3 + ["s" * 61]), "key": "k" * 253}
        for number in range(16)
    ]
    return job(
        model=uri(),
        data={
            "train": uri(),
            "evaluation": uri(),
            "columns": {"text": WIDE * 128, "label": WIDE * 128},
            "replay": {"source": uri()},
        },
        strategy={"adapter": adapter},
        evaluation={"retention": {"data": uri()}},
        output=uri("pvc://models/"),
        pod={
            "labels": LABELS,
            "nodeSelector": LABELS,
            "tolerations": [{"key": key, "operator": "Equal", "value": "v" * 63} for key in keys],
            "envFromSecrets": variables,
        },
    )


@pytest.mark.parametrize("mode", ["Strict", "Ignore"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "uri"), "file:///" + "x" * MIB),
        (("data", "columns"), {"text": "x" * MIB}),
        (("pod", "labels"), {f"key-{number}": "x" * 60 for number in range(16_000)}),
        (("strategy", "adapter"), {"stackOn": [{"uri": "file:///" + "x" * 1000}] * 1000}),
        (("strategy", "promptTuning"), {"initialization": "Text", "text": "x" * MIB}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_spec_of_a_mebibyte_is_refused(
    cluster: Cluster, namespace: Namespace, path: tuple[str, ...], value: Any, mode: str
) -> None:
    manifest = job()
    manifest["metadata"] = {"name": "large"}
    node = manifest["spec"]
    for key in path[:-1]:
        node = node.setdefault(key, {})
    node[path[-1]] = value
    with pytest.raises(RequestError, match=rf"spec\.{path[0]}") as refused:
        cluster.client.create(f"{namespace.job_path()}?fieldValidation={mode}", manifest)
    assert refused.value.status == 422
    assert cluster.client.items(namespace.job_path()) == []


def test_a_mebibyte_under_an_unknown_field_is_not_stored(cluster: Cluster, namespace: Namespace) -> None:
    manifest = job(unknown="x" * MIB)
    manifest["metadata"] = {"name": "padded"}
    cluster.client.create(f"{namespace.job_path()}?fieldValidation=Ignore", manifest)
    assert len(json.dumps(namespace.job("padded"))) < 16 * 1024


def test_the_largest_spec_is_let_in_and_its_job_is_made(cluster: Cluster, namespace: Namespace) -> None:
    manifest = largest()
    made = namespace.apply(manifest, "largest")
    size = len(json.dumps(made["spec"], ensure_ascii=False).encode())
    assert 64 * 1024 < size < 192 * 1024
    template = namespace.child("largest")["spec"]["template"]
    run = make_run(namespace.name, "largest", made["metadata"]["uid"], parse_spec(made["spec"]))
    assert template["metadata"]["annotations"][names.RUN_ANNOTATION] == run.model_dump_json(
        by_alias=True, exclude_none=True
    )
    eventually(lambda: namespace.pods("largest"), "its pod")


def test_the_largest_status_is_small(cluster: Cluster, namespace: Namespace, operator: OperatorProcess) -> None:
    namespace.apply(job(backoffLimit=0), "wordy")
    pod = namespace.bound_pod("wordy")
    cluster.kubelet.run(pod)
    metrics: dict[str, Any] = {
        f"{prefix}{WIDE * 60}{number}": "-1.2345678901234567e-100"
        for prefix in ("eval_", "loss_term_")
        for number in range(32)
    }
    token = pod_token(cluster, namespace, pod)
    assert operator.report(report_path(namespace, "wordy"), report(1, **metrics), token) == 200
    cluster.kubelet.end(pod, 11, message=last_words(11, "DataInvalid", WIDE * 2048, hint=WIDE * 512))
    told = namespace.until("wordy", "Failed", "DataInvalid")["message"]
    assert WIDE * 1000 in told
    status = namespace.job("wordy")["status"]
    assert [len(status["progress"][part]) for part in ("evaluation", "lossTerms")] == [32, 32]
    assert len(json.dumps(status, ensure_ascii=False).encode()) < LARGEST_STATUS
