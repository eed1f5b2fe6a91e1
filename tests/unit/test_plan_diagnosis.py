"""The reason names the cause, and the message says what to do: for pods that do not start, and for pods that failed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_operator.plan.plan import Plan
from plan_builders import (
    DELETED,
    NOW,
    PodBuilder,
    at,
    conditions_of,
    make_child,
    make_job,
    make_pod,
    make_progress,
    make_word,
    message_of,
    plan_of,
)
from status_samples import full_status

SCHEDULER = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def pending(*pods: PodBuilder, nodes: int = 1) -> tuple[str, str]:
    """Reason and message of a job whose pods do not run."""
    plan = plan_of(make_job(), make_child().nodes(nodes), *pods)
    assert plan.status is not None
    assert plan.status["phase"] == "Pending"
    return conditions_of(plan.status)["Reconciling"][1], message_of(plan.status, "Reconciling")


def failed(*pods: PodBuilder, reason: str = "BackoffLimitExceeded", seconds: float = 60) -> tuple[str, str]:
    """Reason and message of a job whose Job failed."""
    plan = plan_of(make_job(), make_child().fails(NOW, reason, "said by Kubernetes"), *pods, now=at(seconds))
    assert plan.status is not None
    assert plan.status["phase"] == "Failed"
    return conditions_of(plan.status)["Failed"][1], message_of(plan.status, "Failed")


def test_a_healthy_start_has_one_reason_all_the_way() -> None:
    steps = (make_pod(), make_pod().scheduled(), make_pod().waiting("ContainerCreating"))
    assert {pending(pod) for pod in steps} == {pending()} == {("PodsPending", "waiting for pods to run")}


def test_unschedulable_has_the_schedulers_words() -> None:
    assert pending(make_pod().unschedulable(SCHEDULER)) == ("Unschedulable", f"router-0-0: {SCHEDULER}")


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_cannot_be_pulled_is_named_in_the_same_words_whichever_way_kubernetes_puts_it(
    reason: str,
) -> None:
    found = pending(make_pod().waiting(reason, f"{reason} by the kubelet"))
    assert found[0] == "ImagePullFailed"
    assert "registry.example/trainer:1 cannot be pulled" in found[1]
    assert "by the kubelet" not in found[1]


def test_a_secret_that_is_absent_points_to_the_field() -> None:
    reason, message = pending(make_pod().waiting("CreateContainerConfigError", 'secret "hub" not found'))
    assert reason == "PodConfigInvalid"
    assert message == 'router-0-0: secret "hub" not found; check the secrets named in spec.pod.envFromSecrets'


DRIVER = "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0, please update your driver"


@pytest.mark.parametrize("reason", ["CreateContainerError", "RunContainerError"])
def test_a_container_that_cannot_be_started_has_the_runtimes_words_and_no_hint_of_secrets(reason: str) -> None:
    found = pending(make_pod().on("node-7").waiting(reason, DRIVER))
    assert found == ("ContainerNotStarted", f"router-0-0: the node node-7 cannot start the container: {DRIVER}")


@pytest.mark.parametrize("number", [1, 2])
def test_what_a_runtime_says_otherwise_at_each_try_is_left_out(number: int) -> None:
    words = f'container create failed: time="2026-01-01T12:00:1{number}Z" level=error msg="no {str(number) * 64}/log"'
    told = 'router-0-0: its node cannot start the container: container create failed: level=error msg="no /log"'
    assert pending(make_pod().waiting("CreateContainerError", words))[1] == told
    assert failed(make_pod().failed(128, "StartError", words))[1] == told


def waits_for(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(exit_code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}


NOT_PULLED = "the image registry.example/agent:1 of the container agent cannot be pulled; check its name, and"
STUCK = [
    (waits_for("ImagePullBackOff"), "ImagePullFailed", f"router-0-0: {NOT_PULLED}"),
    (waits_for("ErrImagePull"), "ImagePullFailed", f"router-0-0: {NOT_PULLED}"),
    (waits_for("CreateContainerConfigError", 'secret "ca" not found'), "PodConfigInvalid",
     'router-0-0: the container agent: secret "ca" not found; that container is not the job\'s: mend what adds it'),
    (waits_for("CreateContainerError", DRIVER), "ContainerNotStarted",
     f"router-0-0: its node cannot start the container agent: {DRIVER}"),
]  # fmt: skip


@pytest.mark.parametrize(("state", "reason", "message"), STUCK)
def test_another_container_that_does_not_start_is_named(state: dict[str, Any], reason: str, message: str) -> None:
    beside = make_pod().waiting("ContainerCreating").beside("agent", state)
    for pod in (make_pod().scheduled().before("agent", state), beside):
        found = pending(pod)
        assert found[0] == reason
        assert found[1].startswith(message)


def test_init_containers_that_run_or_are_done_are_a_healthy_start() -> None:
    pod = make_pod().scheduled().before("first", ended(0, "Completed")).before("mesh", {"running": {}}, None, "Always")
    assert pending(pod.before("last", waits_for("PodInitializing"))) == pending()


def test_what_keeps_the_trainer_waiting_counts_more_than_what_keeps_another_container() -> None:
    pod = make_pod().waiting("ErrImagePull").beside("agent", waits_for("CreateContainerError", DRIVER))
    assert pending(pod)[1].startswith("router-0-0: the image registry.example/trainer:1 cannot be pulled")


def test_a_native_sidecar_that_ends_again_and_again_keeps_the_pod_from_starting() -> None:
    pod = make_pod().scheduled().before("mesh", waits_for("CrashLoopBackOff"), ended(1, message="no CA"), "Always")
    told = "router-0-0: the container mesh ends again and again (exit code 1); its log says more"
    assert pending(pod) == ("OtherContainerFailed", told)


RUNS: dict[str, Any] = {"running": {}}
CRASHES = waits_for("CrashLoopBackOff", "back-off 5m0s restarting failed container")


def says_at(try_: int) -> dict[str, Any]:
    return ended(1, message=f"12:{try_:02}:00 ERROR no CA")


TRIES = {
    "ends before it has started": (
        "the container mesh ends again and again (exit code 1); its log says more",
        [(says_at(1), None), (CRASHES, says_at(1)), (RUNS, says_at(1)), (says_at(2), says_at(1)),
         (CRASHES, says_at(2)), (RUNS, says_at(2)), (says_at(3), says_at(2)), (RUNS, says_at(3))],
    ),
    "ends well, which is no better": (
        "the container mesh ends again and again (exit code 0, Completed); its log says more",
        [(ended(0, "Completed"), None), (CRASHES, ended(0, "Completed")), (RUNS, ended(0, "Completed"))],
    ),
    "cannot be started": (
        f"its node cannot start the container mesh: {DRIVER}",
        [(waits_for("RunContainerError", f"failed to start: {DRIVER}"), ended(128, "StartError", DRIVER)),
         (CRASHES, ended(128, "StartError", DRIVER)), (ended(128, "StartError", DRIVER), None)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("tried", TRIES)
def test_a_native_sidecar_that_is_tried_again_and_again_has_one_word_for_all_of_it(tried: str) -> None:
    """Each other word is a write of status, and as often as the kubelet tries."""
    told, frames = TRIES[tried]
    status: dict[str, Any] | None = None
    for number, (state, last) in enumerate(frames):
        pod = make_pod().scheduled().before("mesh", state, last, "Always")
        plan = plan_of(make_job().status(status), make_child().started(NOW, 1), pod, now=at(20 + 300 * number))
        assert (plan.status is None) == (number > 0)
        status = plan.status or status
    assert message_of(status, "Reconciling") == f"router-0-0: {told}"


def test_a_native_sidecar_that_has_started_after_all_is_a_healthy_start() -> None:
    pod = make_pod().scheduled().before("mesh", RUNS, ended(1), "Always", started=True)
    assert pending(pod) == pending()


def test_an_init_container_that_failed_is_named() -> None:
    pod = make_pod().before("agent", ended(1, message="permission denied\n")).failed_before_its_start()
    told = "router-0-0: the container agent failed (exit code 1, permission denied); its log says more"
    assert failed(pod) == ("OtherContainerFailed", told)
    assert pending(pod) == ("OtherContainerFailed", f"{told}; waiting for the next try")


def test_an_init_container_that_could_not_be_started_has_the_runtimes_words() -> None:
    pod = make_pod().on("node-7").before("agent", ended(128, "StartError", DRIVER)).failed_before_its_start()
    told = f"router-0-0: the node node-7 cannot start the container agent: {DRIVER}"
    assert failed(pod) == ("ContainerNotStarted", told)


def test_a_native_sidecar_is_never_why_a_pod_failed() -> None:
    pod = make_pod().before("mesh", ended(137), restarts="Always").before("agent", ended(2)).failed_before_its_start()
    assert "the container agent failed (exit code 2)" in failed(pod)[1]
    assert failed(make_pod().before("mesh", ended(137), restarts="Always").failed(77))[0] == "TrainerFailed"


DONE = make_word(ExitCode.COMPLETE, "trained 100 of 100 steps")


@pytest.mark.parametrize("word", [DONE, ""])
def test_a_job_that_fails_for_another_container_is_not_said_to_be_complete(word: str) -> None:
    pod = make_pod().failed(0, "Completed", word).beside("istio-proxy", ended(137, "OOMKilled"))
    told = (
        "router-0-0: the trainer is done, but the container istio-proxy failed (exit code 137, OOMKilled); "
        "its log says more"
    )
    assert failed(pod) == ("OtherContainerFailed", told)
    assert pending(pod) == ("OtherContainerFailed", f"{told}; waiting for the next try")


@pytest.mark.parametrize("word", [DONE, ""])
def test_a_pod_that_failed_though_all_that_is_known_of_it_went_well_leaves_the_word_to_the_job(word: str) -> None:
    assert failed(make_pod().failed(0, "Completed", word)) == ("BackoffLimitExceeded", "said by Kubernetes")
    assert pending(make_pod().failed(0, "Completed", word))[0] == "PodsPending"


def test_the_trainers_own_failure_counts_more_than_that_of_another_container() -> None:
    pod = make_pod().failed(11, word=make_word(ExitCode.DATA_INVALID, "no rows")).beside("mesh", ended(137))
    assert failed(pod.before("agent", ended(1))) == ("DataInvalid", "no rows")


def test_a_long_word_of_the_scheduler_leaves_room_for_what_is_said_after_it() -> None:
    word = "0/500 nodes are available: " + ", ".join(
        f"{each} had taint {{pool-{each}: reserved}}" for each in range(60)
    )
    plan = plan_of(
        make_job().suspended(), make_child(), make_pod().unschedulable(word), obstacle="a webhook denied the request"
    )
    message = message_of(plan.status, "Reconciling")
    assert message.startswith("router-0-0: 0/500 nodes are available: 0 had taint")
    assert message.endswith(": a webhook denied the request")


def test_a_long_word_of_a_failed_try_leaves_room_too() -> None:
    word = make_word(ExitCode.INTERNAL_ERROR, "x" * 1024)
    plan = plan_of(make_job().suspended(), make_child(), make_pod().failed(41, word=word), obstacle="it was denied")
    message = message_of(plan.status, "Reconciling")
    assert "x ...; waiting for the next try; " in message
    assert message.endswith(": it was denied")


def test_what_the_user_can_mend_counts_more_than_waiting_for_a_node() -> None:
    assert pending(make_pod(0).unschedulable(SCHEDULER), make_pod(1).waiting("ErrImagePull"))[0] == "ImagePullFailed"


def test_a_pod_that_is_going_away_is_no_reason_to_wait() -> None:
    assert pending(make_pod().unschedulable(SCHEDULER).metadata(**DELETED))[0] == "PodsPending"


def test_between_two_tries_the_reason_is_that_of_the_last_failure() -> None:
    reason, message = pending(make_pod().failed(41))
    assert reason == "NetworkUnavailable"
    assert message.endswith("; waiting for the next try")


def test_a_new_try_that_starts_is_a_start_again() -> None:
    assert pending(make_pod(0).failed(41), make_pod(1))[0] == "PodsPending"


@pytest.mark.parametrize("code", [code for code in ExitCode if code not in (ExitCode.COMPLETE, ExitCode.STOPPED)])
def test_the_trainers_last_word_is_the_reason_and_the_message(code: ExitCode) -> None:
    word = make_word(code, "what happened", "what to do")
    assert failed(make_pod().failed(code, word=word)) == (code.reason, "what happened; what to do")


@pytest.mark.parametrize("code", [code for code in ExitCode if code not in (ExitCode.COMPLETE, ExitCode.STOPPED)])
def test_without_a_last_word_the_exit_code_says_it(code: ExitCode) -> None:
    reason, message = failed(make_pod().failed(code, word="Traceback (most recent call last):"))
    assert (reason, message) == (code.reason, f"router-0-0: {code.explanation}")


def test_out_of_memory_by_kubernetes_reason() -> None:
    for exit_code in (137, 1, 0):  # kubernetes has reported other codes with it
        reason, message = failed(make_pod().failed(exit_code, reason="OOMKilled"))
        assert reason == "OutOfMemory"
        assert "raise spec.resources.memory or lower spec.training.microBatchSize and spec.evaluation" in message


def test_out_of_memory_by_exit_code_137() -> None:
    reason, message = failed(make_pod().failed(137))
    assert reason == "OutOfMemory"
    assert "exit code 137" in message
    assert "spec.resources.memory" in message


def test_out_of_memory_counts_more_than_an_earlier_word() -> None:
    word = make_word(ExitCode.INTERNAL_ERROR, "an earlier word")
    assert failed(make_pod().failed(137, reason="OOMKilled", word=word))[0] == "OutOfMemory"


def test_an_exit_code_that_nobody_knows_points_to_the_log() -> None:
    reason, message = failed(make_pod().failed(77))
    assert (reason, message) == ("TrainerFailed", "router-0-0 ended with exit code 77; its log says more")


@pytest.mark.parametrize(("reason", "exit_code"), [("StartError", 128), ("ContainerCannotRun", 127)])
def test_a_container_that_could_not_be_started_has_the_runtimes_words_and_not_a_log_that_there_is_not(
    reason: str, exit_code: int
) -> None:
    found = failed(make_pod().on("node-7").failed(exit_code, reason, DRIVER))
    assert found == ("ContainerNotStarted", f"router-0-0: the node node-7 cannot start the container: {DRIVER}")


def test_of_a_long_chain_of_errors_the_cause_at_its_end_is_told_on_one_line() -> None:
    chain = "failed to create containerd task: OCI runtime create failed:\n" * 40
    reason, message = failed(make_pod().failed(128, "StartError", f"{chain}{DRIVER}\n"))
    assert reason == "ContainerNotStarted"
    assert message.endswith(DRIVER)
    assert len(message.splitlines()) == 1
    assert len(message) < 600


NO_DEVICE = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu"


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfmemory", "OutOfcpu", "NodeAffinity", "NewWord"])
def test_a_pod_that_its_node_rejected_has_the_kubelets_words(reason: str) -> None:
    pod = make_pod().on("node-7").rejected(reason, f"Pod was rejected: {NO_DEVICE}")
    told = f"router-0-0 was rejected by the node node-7 ({reason}: Pod was rejected: {NO_DEVICE})"
    assert failed(pod) == ("RejectedByNode", told)
    assert pending(pod) == ("RejectedByNode", f"{told}; waiting for the next try")


def test_a_node_that_is_short_of_something_rejects_a_pod_and_that_is_not_for_what_it_wrote() -> None:
    reason, message = failed(make_pod().rejected("Evicted", "The node had condition: [DiskPressure]. "))
    assert reason == "Preempted"
    assert message == "router-0-0 was removed from its node (Evicted: The node had condition: [DiskPressure])"


def test_a_deadline_of_the_pod_itself_is_not_taken_for_the_jobs() -> None:
    stopped = make_pod().failed(143, word=make_word(ExitCode.STOPPED, "saved step 5"))
    pod = stopped.rejected("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
    reason, message = failed(pod)
    assert reason == "DeadlineExceeded"
    assert "longer than the specified deadline; that is no deadline of the job" in message


LOST = "The container could not be located when the pod was terminated"


@pytest.mark.parametrize(
    ("exit_code", "reason", "words"), [(137, "ContainerStatusUnknown", LOST), (255, "Unknown", "")]
)
def test_a_container_that_was_lost_with_its_machine_did_not_run_out_of_memory(
    exit_code: int, reason: str, words: str
) -> None:
    found = failed(make_pod().failed(exit_code, reason, words))
    told = f"{reason}: {words}" if words else reason
    assert found == ("Preempted", f"router-0-0 was removed from its node ({told})")


def test_an_exit_code_255_of_a_program_is_its_own() -> None:
    assert failed(make_pod().failed(255))[0] == "TrainerFailed"


@pytest.mark.parametrize("reason", ["Evicted", "Preempting", "NodeShutdown", "Terminated", "Shutdown", "NodeLost"])
def test_a_pod_that_was_removed_was_preempted(reason: str) -> None:
    assert failed(make_pod().disrupted(reason)) == ("Preempted", f"router-0-0 was removed from its node ({reason})")


def test_a_disruption_counts_though_the_kubelet_gives_no_reason() -> None:
    assert failed(make_pod().disrupted()) == ("Preempted", "router-0-0 was removed from its node (disruption)")


def test_a_removed_pod_has_the_kubelets_words() -> None:
    pod = make_pod().disrupted("Evicted")
    pod.body["status"]["message"] = "The node was low on resource: memory. "
    told = "router-0-0 was removed from its node (Evicted: The node was low on resource: memory)"
    assert failed(pod) == ("Preempted", told)


EXCEEDED = 'Usage of EmptyDir volume "scratch" exceeds the limit "50Gi". '


@pytest.mark.parametrize("exit_code", [137, 143, 1])
def test_a_pod_evicted_for_what_it_wrote_has_the_kubelets_words_and_the_field_to_raise(exit_code: int) -> None:
    pod = make_pod().evicted(EXCEEDED, exit_code)
    reason, message = failed(pod)
    assert reason == "StorageFull"
    assert message.startswith('router-0-0 was evicted (Usage of EmptyDir volume "scratch" exceeds the limit "50Gi"); ')
    assert "raise spec.resources.ephemeralStorage" in message
    assert pending(pod) == ("StorageFull", f"{message}; waiting for the next try")


def test_an_eviction_for_what_a_pod_wrote_counts_more_than_a_removal_or_a_stop() -> None:
    for other in (make_pod(1).disrupted("Evicted"), make_pod(1).failed(143)):
        assert failed(make_pod(0).evicted(EXCEEDED, 143), other)[0] == "StorageFull"


def test_a_failure_of_its_own_counts_more_than_a_later_removal() -> None:
    assert failed(make_pod(0).failed(11), make_pod(1).disrupted("Evicted"))[0] == "DataInvalid"


def test_a_failure_of_its_own_counts_more_than_a_later_stop() -> None:
    word = make_word(ExitCode.STOPPED, "stopped")
    assert failed(make_pod(0).failed(15), make_pod(1).failed(143, word=word))[0] == "NonFiniteLoss"


def test_of_two_failures_the_newer_one_counts() -> None:
    assert failed(make_pod(0).failed(11), make_pod(1).failed(16))[0] == "OutOfMemory"


OWN, PERMANENT = make_pod(0).failed(41), make_pod(0).failed(15)
REMOVED, STOPPED, LEFT = make_pod(0).disrupted("Evicted"), make_pod(0).failed(143), make_pod(0).failed(44)


@pytest.mark.parametrize(
    ("nearer", "further", "reason"),
    [
        (PERMANENT, OWN, "NonFiniteLoss"),
        (PERMANENT, LEFT, "NonFiniteLoss"),
        (OWN, LEFT, "NetworkUnavailable"),
        (REMOVED, LEFT, "Preempted"),
        (STOPPED, LEFT, "Stopped"),
        (OWN, REMOVED, "NetworkUnavailable"),
        (OWN, STOPPED, "NetworkUnavailable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_several_nodes_the_cause_counts_and_not_what_followed_from_it(
    nearer: PodBuilder, further: PodBuilder, reason: str
) -> None:
    for cause_at, effect_at in ((0, 1), (1, 0)):
        cause = PodBuilder(nearer.obj()).node(cause_at).created(at(cause_at)).metadata(name="cause", uid="cause")
        effect = PodBuilder(further.obj()).node(effect_at).created(at(effect_at)).metadata(name="effect", uid="effect")
        assert failed(cause, effect)[0] == reason


def test_nodes_that_all_lost_each_other_say_so() -> None:
    assert failed(make_pod(0).failed(44), make_pod(1).node(1).failed(44))[0] == "PeerLost"


def test_one_node_of_several_that_no_machine_takes_is_the_reason() -> None:
    waits = make_pod(1).node(1).unschedulable(SCHEDULER)
    for first in (make_pod(0).running(), make_pod(0).scheduled(), make_pod(0).failed(44)):
        assert pending(first, waits, nodes=2) == ("Unschedulable", f"router-0-1: {SCHEDULER}")


def test_a_node_that_waits_for_its_next_try_tells_why_though_the_others_live() -> None:
    down = make_pod(1).node(1).failed(137)
    for others in ((make_pod(0).running(),), (make_pod(0).failed(44), make_pod(2))):
        reason, message = pending(*others, down, nodes=2)
        assert reason == "OutOfMemory"
        assert message.endswith("; waiting for the next try")


def test_when_every_node_has_its_next_try_it_is_a_start_again() -> None:
    ended = (make_pod(0).failed(44), make_pod(1).node(1).failed(137))
    assert pending(*ended, make_pod(2), make_pod(3).node(1).running(), nodes=2)[0] == "PodsPending"


def test_retries_that_are_used_up_have_the_reason_of_the_last_try() -> None:
    assert failed(*(make_pod(number).failed(41) for number in range(4)))[0] == "NetworkUnavailable"


def test_retries_that_are_used_up_without_a_pod_left_have_kubernetes_words() -> None:
    assert failed() == ("BackoffLimitExceeded", "said by Kubernetes")


def test_the_deadline_is_named_whatever_the_pods_say() -> None:
    found = failed(make_pod().failed(143), reason="DeadlineExceeded")
    assert found == ("DeadlineExceeded", "the job ran longer than spec.activeDeadlineSeconds")


def test_a_long_message_fits_the_condition() -> None:
    reason, message = failed(make_pod().failed(11, word=make_word(ExitCode.DATA_INVALID, "x" * 2048)))
    assert (reason, len(message)) == ("DataInvalid", 1024)


@pytest.mark.parametrize(
    "word", ["{", "[]", '{"exitCode": 11}', '{"exitCode": 99, "reason": "x", "message": "y"}', "é"]
)
def test_a_message_that_is_no_last_word_is_passed_over(word: str) -> None:
    assert failed(make_pod().failed(11, word=word))[0] == "DataInvalid"


def test_a_last_word_cannot_call_its_failure_by_another_name() -> None:
    word = make_word(ExitCode.DATA_INVALID, "said").replace("DataInvalid", "Nice Try")
    assert failed(make_pod().failed(11, word=word))[0] == "DataInvalid"


def complete(*pods: PodBuilder, seconds: float = 0) -> Plan:
    return plan_of(make_job(), make_child().complete(NOW), *pods, now=at(seconds))


def test_a_complete_job_has_the_result_and_the_progress_of_the_last_word() -> None:
    result, progress = full_status().result, make_progress(100)
    word = make_word(ExitCode.COMPLETE, "accuracy 0.5 -> 1.0", progress=progress, result=result)
    plan = complete(make_pod().succeeded(word))
    assert plan.status is not None
    assert result is not None
    assert plan.status["result"] == result.to_json()
    assert plan.status["progress"] == progress.to_json()
    assert conditions_of(plan.status)["Complete"] == ("True", "Complete")
    assert message_of(plan.status, "Complete") == "accuracy 0.5 -> 1.0"


@pytest.mark.parametrize("last_of_all", [0, 1])
@pytest.mark.parametrize(
    "other",
    [make_pod(1).succeeded(make_word(ExitCode.COMPLETE, "done")), make_pod(1).failed(143), make_pod(1).running()],
    ids=["done too", "told to stop", "still to be stopped"],
)
def test_of_several_nodes_the_first_has_the_result_and_ends_the_job(other: PodBuilder, last_of_all: int) -> None:
    result, progress = full_status().result, make_progress(100)
    word = make_word(ExitCode.COMPLETE, "rank 0", progress=progress, result=result)
    first = make_pod(0).created(at(2 * (last_of_all == 0))).succeeded(word)
    plan = plan_of(make_job(), make_child().nodes(2).complete(NOW), first, other.node(1))
    assert plan.status is not None
    assert message_of(plan.status, "Complete") == "rank 0"
    assert result is not None
    assert (plan.status["result"], plan.status["progress"]) == (result.to_json(), progress.to_json())


def test_the_end_is_not_written_before_the_first_node_has_spoken_though_another_has() -> None:
    other = make_pod(1).node(1).succeeded(make_word(ExitCode.COMPLETE, "rank 1"))
    plan = plan_of(make_job(), make_child().nodes(2).complete(NOW), make_pod(0).running(), other, now=at(4))
    assert plan.status is not None
    assert plan.status["phase"] == "Running"
    assert plan.requeue_after == timedelta(seconds=6)


def test_the_end_is_not_written_before_every_node_is_known_as_one_may_be_the_cause() -> None:
    first = make_pod(0).failed(ExitCode.PEER_LOST)
    child = make_child().nodes(2).fails(NOW, "PodFailurePolicy")
    plan = plan_of(make_job(), child, first, now=at(4))
    assert plan.status is not None
    assert plan.status["phase"] == "Pending"
    assert plan.requeue_after == timedelta(seconds=6)
    for other in (make_pod(1).failed(11), make_pod(1).running().metadata(**DELETED)):
        plan = plan_of(make_job(), child, first, other.node(1), now=at(4))
        assert plan.status is not None
        assert plan.status["phase"] == "Failed"


def test_a_failed_job_has_the_progress_of_the_first_node_and_the_reason_of_the_one_that_failed() -> None:
    first = make_pod(0).failed(143, word=make_word(ExitCode.STOPPED, "stopped", progress=make_progress(7)))
    other = make_pod(1).node(1).failed(11, word=make_word(ExitCode.DATA_INVALID, "no rows"))
    plan = plan_of(make_job(), make_child().nodes(2).fails(NOW), first, other)
    assert plan.status is not None
    assert message_of(plan.status, "Failed") == "no rows"
    assert plan.status["progress"]["step"] == 7


def test_a_failed_job_has_no_result_though_a_pod_had_one() -> None:
    word = make_word(ExitCode.COMPLETE, "done", result=full_status().result)
    plan = plan_of(make_job(), make_child().fails(NOW), make_pod(0).succeeded(word), make_pod(1).failed(1))
    assert plan.status is not None
    assert "result" not in plan.status


def test_a_complete_job_without_a_word_is_complete_all_the_same() -> None:
    plan = complete(make_pod().succeeded())
    assert plan.status is not None
    assert message_of(plan.status, "Complete") == "the trainer ended with exit code 0"


@pytest.mark.parametrize("pods", [(), (make_pod().running(),)], ids=["unseen", "still running"])
def test_the_end_is_not_written_before_the_pods_have_spoken(pods: tuple[PodBuilder, ...]) -> None:
    for child in (make_child().complete(NOW), make_child().fails(NOW)):
        early = plan_of(make_job(), child, *pods, now=at(4))
        assert early.status is not None
        assert early.status["phase"] not in ("Complete", "Failed")
        assert early.requeue_after == timedelta(seconds=6)
        late = plan_of(make_job(), child, *pods, now=at(10))
        assert late.status is not None
        assert late.status["phase"] in ("Complete", "Failed")
