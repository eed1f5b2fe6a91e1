"""What `kubectl finetune describe` says of pods that the API server refuses: its words from the Job's Events."""

from __future__ import annotations

import re

import pytest

from finetune_cli.kubectl.describe import describe
from finetune_cli.kubectl.refusals import advice_on_refusal
from kubectl_records import RAN, Object, Recorded, console, job, pod, said

FORBIDDEN = 'pods "router-0-7xk2p" is forbidden'
QUOTA = f"{FORBIDDEN}: exceeded quota: q, requested: requests.memory=8Gi, used: requests.memory=0, limited: 1Gi"


def event(second: int, message: str, reason: str = "FailedCreate", **about: str) -> Object:
    time = f"2026-01-02T03:05:{second:02}Z"
    return {
        "metadata": {"creationTimestamp": time}, "type": "Warning", "reason": reason, "message": message,
        "involvedObject": {"kind": "Job", "name": "router", **about}, "eventTime": None, "lastTimestamp": time,
    }  # fmt: skip


def why(*events: Object, reason: str = "PodsPending", phase: str = "Pending") -> str:
    out = console()
    body = job(phase=phase, reason=reason, message="said by the operator")
    assert describe(Recorded(body, events=events), "team", "router", out) == 0
    return said(out).split("Task")[0]


@pytest.mark.parametrize("reason", ["PodsRefused", "PodsPending"])
def test_the_newest_refusal_is_the_reason_with_what_to_do_also_before_the_operator_says_it(reason: str) -> None:
    text = why(event(1, "Error creating: an earlier word"), event(2, f"Error creating: {QUOTA}"), reason=reason)
    assert f"Why   PodsRefused: {QUOTA}" in text
    assert "Do    kubectl describe quota -n team shows what is used." in text


def test_refusals_that_are_over_say_nothing() -> None:
    made = event(2, "Created pod: router-0-7xk2p", "SuccessfulCreate")
    assert "Why   PodsPending: said by the operator" in why(event(1, QUOTA), made)
    assert "Why   PodsRunning: said by the operator" in why(event(1, QUOTA), phase="Running", reason="PodsRunning")


def test_one_pod_of_several_that_could_be_made_hides_no_refusal() -> None:
    made = event(2, "Created pod: router-0-7xk2p", "SuccessfulCreate")
    assert f"Why   PodsRefused: {QUOTA}" in why(event(1, QUOTA), made, reason="PodsRefused")


def test_refusals_of_others_are_not_the_jobs() -> None:
    earlier = event(1, QUOTA)
    earlier["lastTimestamp"] = "2026-01-02T02:59:59Z"  # before the job was created
    assert "Why   PodsPending" in why(earlier, event(2, QUOTA, kind="ReplicaSet"), event(3, QUOTA, name="other"))


def test_without_events_the_operators_word_and_where_to_look_are_told() -> None:
    text = why(reason="PodsRefused")
    assert "Why   PodsRefused: said by the operator" in text
    assert "Do    kubectl describe job router -n team has the API server's words" in text


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (f"{FORBIDDEN}: failed quota: q: must specify limits.cpu for: trainer", "LimitRange of this namespace"),
        (f"{FORBIDDEN}: failed quota: q: must specify requests.memory for: trainer", "give it in spec.resources"),
        (f"{FORBIDDEN}: no PriorityClass with name research was found", "spec.pod.priorityClassName"),
        (f"{FORBIDDEN}: maximum memory usage per Container is 1Gi, but limit is 8Gi", "describe limitrange -n team"),
        (f'{FORBIDDEN}: violates PodSecurity "restricted:latest": unrestricted capabilities', "Service meshes"),
        (f"{FORBIDDEN}: unable to validate against any security context constraint: []", "FINETUNE_FIXED_USER"),
        (f'{FORBIDDEN}: error looking up service account team/default: serviceaccount "default" not found',
         "kubectl create serviceaccount default -n team"),
        (f'{FORBIDDEN}: pod rejected: RuntimeClass "nvidia" not found', "kubectl get runtimeclasses"),
        ('admission webhook "gate.example" denied the request: no', "A webhook of this cluster"),
        (f"{FORBIDDEN}: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: no", "A policy of this cluster"),
    ],
)  # fmt: skip
def test_what_to_do_depends_on_who_refuses(words: str, advice: str) -> None:
    found = advice_on_refusal(words, "team", "router")
    assert advice in found
    assert not re.search(r"\bNAME", found)


def test_the_ends_of_pods_in_which_no_trainer_was_have_the_nodes_words() -> None:
    rejected = pod("router-0-a")
    rejected["status"] = {"phase": "Failed", "reason": "OutOfmemory", "message": "Node didn't have enough resource"}
    unstarted = pod("router-0-b", terminated={"exitCode": 128, "reason": "StartError", "message": "no CUDA", **RAN})
    unstarted["status"]["phase"] = "Failed"
    lost = pod("router-0-c", terminated={"exitCode": 137, "reason": "ContainerStatusUnknown", **RAN})
    out = console()
    assert describe(Recorded(job(phase="Failed"), pods=(rejected, unstarted, lost)), "team", "router", out) == 0
    text = said(out)
    assert "was rejected by its node (OutOfmemory: Node didn't have enough resource)" in text
    assert "its node cannot start the container: no CUDA" in text
    assert "removed from its node (ContainerStatusUnknown)" in text
    assert "memory ran out" not in text


def test_only_whole_words_are_filled_in() -> None:
    text = advice_on_refusal('pod rejected: RuntimeClass "fast" not found', "team", "router")
    assert "(FINETUNE_GPU_RUNTIME_CLASS_NAME)" in text
