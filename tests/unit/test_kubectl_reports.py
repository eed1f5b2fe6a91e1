"""What the kubectl plugin says of recorded objects: nothing that is absent, always what to do."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from finetune_api.exit_codes import ExitCode
from finetune_cli.kubectl.advice import ADVICE, advice
from finetune_cli.kubectl.cluster import ClusterProblem
from finetune_cli.kubectl.describe import describe
from finetune_cli.kubectl.facts import Facts, age
from finetune_cli.kubectl.listing import list_jobs
from finetune_cli.kubectl.result import how_to_load, result
from finetune_operator.metrics.labels import REASONS
from kubectl_records import RAN, Object, Recorded, console, job, pod, progress, said
from plan_builders import PodBuilder, make_pod, make_word
from status_samples import full_status

OPERATOR_PAGE = Path(__file__).resolve().parents[2] / "docs" / "operator.md"


def test_a_full_status_is_read() -> None:
    facts = Facts({**job(), "status": full_status().to_json()})
    assert facts.state == "Running"
    assert facts.status.progress is not None
    assert facts.status.progress.loss_terms == {"task": 0.125, "response": 0.0625}


@pytest.mark.parametrize(
    ("body", "state", "code"),
    [
        (job(), "Pending", 1),
        (job(phase="Pending", reason="PodsPending"), "Pending", 1),
        (job(phase="Pending", reason="Unschedulable"), "Pending: Unschedulable", 1),
        (job(phase="Running", reason="PodsRunning"), "Running", 1),
        (job(phase="Running", reason="HeldBySidecar"), "Running: HeldBySidecar", 1),
        (job(phase="Complete", reason="Complete"), "Complete", 0),
        (job(phase="Failed", reason="OutOfMemory"), "Failed: OutOfMemory", 16),
        (job(phase="Failed", reason="Forgetting"), "Failed: Forgetting", 18),
        (job(phase="Failed", reason="DeadlineExceeded"), "Failed: DeadlineExceeded", 1),
        (job(phase="Failed", reason="Complete"), "Failed: Complete", 1),
    ],
)
def test_state_and_exit_code(body: Object, state: str, code: int) -> None:
    assert (Facts(body).state, Facts(body).exit_code) == (state, code)


def test_a_field_of_a_later_release_hides_nothing() -> None:
    body = job(phase="Failed", reason="DataInvalid")
    body["status"]["weather"] = {"tomorrow": "rain"}
    assert Facts(body).state == "Failed: DataInvalid"


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d")])
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_there_is_advice_for_every_reason_that_the_operator_gives() -> None:
    page = OPERATOR_PAGE.read_text()
    waiting = set(re.findall(r"^\| `(\w+)` \| (?:Pending|Queued|Suspended|Running|Complete|Failed)\b", page, re.M))
    assert len(waiting) >= 14
    assert waiting | REASONS <= ADVICE.keys()


def test_every_reason_is_documented() -> None:
    pages = (OPERATOR_PAGE, OPERATOR_PAGE.with_name("exit-codes.md"))
    rows = [row for page in pages for row in page.read_text().splitlines() if row.startswith("| ")]
    of_the_plugin = {"NotSeen"}
    documented = set(re.findall(r"`(\w+)`", "\n".join(rows)))
    assert (ADVICE.keys() | REASONS) - of_the_plugin - documented == set()


def test_what_a_trainer_refused_is_not_to_be_changed_in_place() -> None:
    for start, words in (({}, "and apply again"), ({"startTime": "2026-01-02T03:01:00Z"}, "and create it anew")):
        out = console()
        describe(Recorded(job(phase="Failed", reason="SpecInvalid", **start)), "team", "router", out)
        assert words in " ".join(said(out).split())


def test_advice_has_the_job_in_its_commands() -> None:
    assert "kubectl finetune result router -n team" in advice("Complete", "team", "router")
    assert not re.search(r"\bNAME", "".join(advice(reason, "team", "router") for reason in ADVICE))


def test_describe_says_why_what_to_do_and_what_was_tried() -> None:
    body = job(
        phase="Failed", reason="OutOfMemory", message="router-0 used more than its memory limit",
        startTime="2026-01-02T03:01:00Z", completionTime="2026-01-02T03:11:05Z", restarts=1,
        progress=progress(40, lossTerms={"task": "0.5", "response": "0.25"}, forgetting="0.125",
                          lastCheckpoint={"step": 30, "time": "2026-01-02T03:10:00Z"}),
    )  # fmt: skip
    pods = (
        pod("router-0-a", terminated={"exitCode": 43, "reason": "Error", **RAN}),
        pod("router-0-b", terminated={"exitCode": 137, "reason": "OOMKilled", **RAN}),
    )
    event = {
        "metadata": {"creationTimestamp": "2026-01-02T03:11:05Z"}, "type": "Warning", "reason": "OutOfMemory",
        "message": "[Errno 12] over [/bold] the limit", "involvedObject": {"kind": "FineTuneJob", "name": "router"},
        "eventTime": "2026-01-02T03:11:05.000000Z", "lastTimestamp": None,
    }  # fmt: skip
    out = console()
    assert describe(Recorded(body, pods=pods, events=(event,)), "team", "router", out) == 0
    text = said(out)
    for part in (
        "team/router: Failed: OutOfMemory",
        "Why   OutOfMemory: router-0 used more than its memory limit",
        "Do    Halve training.microBatchSize",
        "Log   kubectl finetune logs router -n team",
        "1:00 until its first pod ran, 10:05 to its end",
        "step 40 of 100 (40 %)",
        "0.8000 (task 0.5000, response 0.2500)",
        "0.1250 of accuracy on the retention rows",
        "Hang: Nothing got on for too long; the log shows where each thread stood.",
        "OutOfMemory: used more than its memory limit; raise spec.resources.memory",
        "[Errno 12] over [/bold] the limit",
    ):
        assert part in text
    assert "to go" not in text, "a job that has ended has nothing to go"


WROTE = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi"
LATE = "Pod was active on the node longer than the specified deadline"


@pytest.mark.parametrize(
    ("made", "ending"),
    [
        (make_pod().succeeded(), "Complete: The job is Complete: the model was exported, reloaded and compared."),
        (make_pod().failed(143, word=make_word(ExitCode.STOPPED, "stopped at step 7", "start it again")),
         "Stopped: stopped at step 7; start it again"),
        (make_pod().evicted(WROTE, 143), f"StorageFull: was evicted ({WROTE}); raise spec.resources.ephemeralStorage"),
        (make_pod().failed(143).rejected("DeadlineExceeded", LATE),
         f"DeadlineExceeded: {LATE}; that is no deadline of the job"),
        (make_pod().running().disrupted(), "Preempted: was removed from its node (disruption)"),
        (make_pod().failed(11, word=make_word(ExitCode.DATA_INVALID, "row 7", "label it")),
         "DataInvalid: row 7; label it"),
        (make_pod().failed(137), "OutOfMemory: was killed (exit code 137); most often memory ran out"),
        (make_pod().on("n7").failed(128, "StartError", "no driver"),
         "ContainerNotStarted: the node n7 cannot start the container: no driver"),
        (make_pod().failed(77), "TrainerFailed: ended with exit code 77; its log says more"),
        (make_pod().unschedulable("0/3 nodes are available"), "0/3 nodes are available"),
        (make_pod().succeeded().held(), "Complete: The job is Complete: the model was exported"),
        (make_pod().failed(0).beside("proxy", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
         "OtherContainerFailed: the trainer is done, but the container proxy failed (exit code 137, OOMKilled)"),
        (make_pod().failed_before_its_start().before("agent", {"terminated": {"exitCode": 1, "message": "denied"}}),
         "OtherContainerFailed: the container agent failed (exit code 1, denied); its log says more"),
        (make_pod().scheduled().before("agent", {"waiting": {"reason": "ImagePullBackOff", "message": "back-off"}}),
         "ImagePullFailed: the image registry.example/agent:1 of the container agent cannot be pulled"),
        (make_pod().waiting("ErrImagePull", "manifest unknown"), "manifest unknown"),
        (make_pod().scheduled().before("agent", {"running": {}}), "PodInitializing"),
    ],
)  # fmt: skip
def test_describe_says_of_each_pod_what_the_operator_says(made: PodBuilder, ending: str) -> None:
    out = Console(file=io.StringIO(), width=400)
    assert describe(Recorded(job(phase="Running"), pods=(made.obj(),)), "team", "router", out) == 0
    [row] = [line for line in said(out).splitlines() if line.startswith("router-0-0 ")]
    assert re.split(r" {2,}", row.strip())[-1].startswith(ending)


def test_what_runs_has_no_ending_yet() -> None:
    out = Console(file=io.StringIO(), width=400)
    assert describe(Recorded(job(phase="Running"), pods=(make_pod().running().obj(),)), "team", "router", out) == 0
    [row] = [line for line in said(out).splitlines() if line.startswith("router-0-0 ")]
    assert len(re.split(r" {2,}", row.strip())) == 3


def test_describe_of_a_job_that_nobody_has_seen() -> None:
    out = console()
    assert describe(Recorded(job()), "team", "router", out) == 0
    assert "the operator has not looked at it yet" in said(out)


def test_result_compares_before_and_after() -> None:
    body = job(phase="Complete")
    body["status"] |= {"result": full_status().to_json()["result"], "strategy": "Bottleneck"}
    out = console()
    assert result(Recorded(body), "team", "router", out) == 0
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in said(out).splitlines() if "│" in line]
    assert ["accuracy", "0.5000", "1.0000", "+0.5000"] in rows
    assert ["accuracy on the retention rows", "0.5000", "0.2500", "-0.2500"] in rows
    assert ["accuracy without a model", "0.5000", "", ""] in [[*row, ""][:4] for row in rows]
    assert "12.50% " not in said(out)
    assert "(12.50%), 100 (stopped early) steps in 0:12" in said(out)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (job(phase="Running", progress=progress(25)), "no result yet: Running, step 25 of 100; wait for it with"),
        (job(phase="Failed", reason="DataInvalid", message="row 7"), "has no result: Failed, DataInvalid: row 7"),
    ],
)
def test_without_a_result_the_reason_is_said(body: Object, message: str) -> None:
    with pytest.raises(ClusterProblem, match=message):
        result(Recorded(body), "team", "router", console())


@pytest.mark.parametrize(
    ("uri", "said", "given"),
    [
        ("pvc://models/a/b", "Mount the claim models in a pod, say at /models; the model is the folder /models/a/b.",
         'directory = "/models/a/b"'),
        ("s3://bucket/out", "Copy it: aws s3 cp --recursive s3://bucket/out tuned", 'directory = "tuned"'),
        ("s3://bucket/$(id)", "Copy it: aws s3 cp --recursive 's3://bucket/$(id)' tuned", 'directory = "tuned"'),
        ("file:///out", "", 'directory = "/out"'),
        ('pvc://models/"+x+"', "", 'directory = "/models/\\"+x+\\""'),
    ],
)  # fmt: skip
def test_result_says_where_the_model_is(uri: str, said: str, given: str) -> None:
    text = how_to_load({"task": "TextClassification", "strategy": {"full": {}}}, uri)
    assert said in text
    assert f"\n{given}\n" in text


def test_list_shows_those_that_run_first() -> None:
    out = console()
    done = job("done", phase="Complete", strategy="LoRA")
    done["status"]["result"] = full_status().to_json()["result"]
    running = job("runs", phase="Running", progress=progress(25), strategy="Full")
    assert list_jobs(Recorded(done, job("stuck", phase="Pending", reason="Unschedulable"), running), "team", out) == 0
    lines = [re.split(r" {2,}", line.strip()) for line in said(out).splitlines()]
    assert lines[0] == ["NAME", "STATE", "STRATEGY", "PROGRESS", "LOSS", "METRIC", "ETA", "AGE"]
    assert [line[:3] for line in lines[1:]] == [
        ["runs", "Running", "Full"],
        ["stuck", "Pending: Unschedulable", lines[2][2]],
        ["done", "Complete", "LoRA"],
    ]
    assert lines[1][3:6] == ["25 %", "0.8750", "1:30"]
    assert "accuracy 1.0000" in lines[3]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_name_in_a_list_is_cut(is_terminal: bool) -> None:
    name, namespace = "ticket-router-distilbert-multilingual-v3-" + "seed" * 20, "customer-support-" + "x" * 40
    body = job(name, phase="Pending", reason="ImagePullFailed", progress=progress(5))
    body["metadata"]["namespace"] = namespace
    out = Console(file=io.StringIO(), width=80, force_terminal=is_terminal, color_system=None)
    assert list_jobs(Recorded(body), None, out) == 0
    heading, row = said(out).splitlines()
    assert row.split()[:4] == [namespace, name, "Pending:", "ImagePullFailed"]
    assert len(heading) == len(row)
    assert "…" not in heading + row
