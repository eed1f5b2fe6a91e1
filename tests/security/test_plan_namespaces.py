"""Ten thousand FineTuneJobs with hostile words in them: what is planned stays in their namespace and shape."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from contract_cases import VALID_SPECS, valid_job
from finetune_operator.plan.plan import FIELD_UNKNOWN, SPEC_INVALID
from plan_builders import KEY, JobBuilder, make_job, plan_of

JOBS = 10_000
HOSTILE: tuple[Any, ...] = (
    "kube-system/secret", "kube-system", "../kube-system/x", "a\nb: c", "namespace: kube-system", "{{.Namespace}}",
    "$(POD_NAMESPACE)", "default", "", "-x", "x" * 300, "\u0000", "\u202e", 5, None, True, [], {"namespace": "default"},
)  # fmt: skip
HOSTILE_URIS = (
    "pvc://kube-system/claim", "pvc://claim.kube-system/x", "pvc://kube-system:claim/x", "pvc://kube-system%2Fclaim/x",
    "pvc://claim/../../kube-system/x", "pvc://claim/$(POD_NAMESPACE)", "file:///var/run/secrets/kubernetes.io",
    "hf://kube-system/claim", "https://kubernetes.default.svc/api", "pvc://CLAIM/x", "pvc:///kube-system", *HOSTILE,
)  # fmt: skip
KINDS = {"Job", "Service", "PersistentVolumeClaim"}
VOLUMES = {"downwardAPI", "emptyDir", "persistentVolumeClaim"}
Path = tuple[str | int, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where a spec has strings, numbers and truths."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None:
        yield path
    for key, part in inner or ():
        yield from leaves(part, (*path, key))


def put(spec: Any, path: Path, value: Any) -> None:
    for key in path[:-1]:
        spec = spec[key]
    spec[path[-1]] = value


def runnable(name: str) -> dict[str, Any]:
    """A valid spec that this release runs, with an output that it has a claim made for."""
    spec: dict[str, Any] = valid_job(name)["spec"]
    # No queue and no suspension, or there would be no child to look at.
    kept = {field: value for field, value in spec.items() if field not in ("suspend", "queueName", "resources")}
    return kept | {"output": {"uri": "pvc://models/tuned", "createClaim": {"size": "1Gi"}}}


SPECS = [runnable(name) for name in VALID_SPECS]


def hostile_job(chance: random.Random) -> JobBuilder:
    """A FineTuneJob as the API server might hand it over, whether its schema lets it in or not."""
    spec = copy.deepcopy(chance.choice(SPECS))
    for path in chance.sample(sorted(leaves(spec), key=str), chance.choice((0, 1, 1, 1, 2))):
        put(spec, path, chance.choice(HOSTILE_URIS if path[-1] == "uri" else HOSTILE))
    if chance.random() < 0.1:
        spec[chance.choice(["namespace", "serviceAccountName", "volumes", "template"])] = chance.choice(HOSTILE)
    job = make_job()
    job.body["spec"] = spec
    return job


def namespaces_in(value: Any) -> Iterator[Any]:
    """What stands under any key that means a namespace, at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(key, str) and "namespace" in key.lower():
            yield inner
        yield from namespaces_in(inner)


@pytest.mark.security(9, 12)
def test_every_child_of_ten_thousand_jobs_is_in_its_jobs_own_namespace() -> None:
    seen: Counter[str] = Counter()
    for seed in range(JOBS):
        plan = plan_of(hostile_job(random.Random(seed)))
        refused = any(entry["reason"] in (SPEC_INVALID, FIELD_UNKNOWN) for entry in (plan.status or {})["conditions"])
        seen["refused" if refused else "planned"] += 1
        assert bool(plan.create) != refused, seed
        for child in plan.create:
            judge(child, seed)
    assert min(seen["refused"], seen["planned"]) > JOBS // 10, seen


def judge(child: dict[str, Any], seed: int) -> None:
    assert child["kind"] in KINDS, seed
    assert set(namespaces_in(child)) == {KEY.namespace}, seed
    if child["kind"] != "Job":
        return
    pod = child["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False, seed
    assert not {"serviceAccountName", "hostNetwork", "hostPID", "hostIPC", "nodeName"} & set(pod), seed
    for volume in pod["volumes"]:
        assert set(volume) - {"name"} <= VOLUMES, seed
        assert "/" not in volume.get("persistentVolumeClaim", {}).get("claimName", ""), seed
