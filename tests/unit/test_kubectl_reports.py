"""What the kubectl plugin says of recorded objects: nothing that is absent, always what to do."""

from __future__ import annotations

import io
import re
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

from finetune_cli.kubectl.advice import ADVICE, advice
from finetune_cli.kubectl.cluster import ClusterProblem
from finetune_cli.kubectl.describe import describe
from finetune_cli.kubectl.facts import Facts, age
from finetune_cli.kubectl.listing import list_jobs
from finetune_cli.kubectl.result import how_to_load, result
from finetune_operator.metrics.labels import REASONS
from kubectl_records import RAN, Object, Recorded, console, job, pod, progress, said
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
        "exit code 43, Hang: Nothing got on for too long; the log shows where each thread stood.",
        "killed by the kernel: over its memory limit",
        "[Errno 12] over [/bold] the limit",
    ):
        assert part in text
    assert "to go" not in text, "a job that has ended has nothing to go"


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
    ("task", "strategy", "uri", "lines"),
    [
        ("TextClassification", {"full": {}}, "pvc://models/a/b",
         ['directory = "/models/a/b"', "AutoModelForSequenceClassification.from_pretrained(directory)"]),
        ("TextGeneration", {"adapter": {"type": "LoRA"}}, "hf://me/tuned",
         ['directory = "me/tuned"', "base = AutoModelForCausalLM", "PeftModel.from_pretrained(base, directory)"]),
        ("TextGeneration", {"adapter": {"type": "LoRA", "merge": True}}, "file:///out",
         ['directory = "/out"', "AutoModelForCausalLM.from_pretrained(directory)"]),
        ("TextGeneration", {"adapter": {"type": "LoRA", "stackOn": [{"uri": "x"}]}}, "s3://bucket/out",
         ['directory = "tuned"', "trust_remote_code=True"]),
        ("TokenClassification", {"adapter": {"type": "Bottleneck"}}, "pvc://models/a", ["trust_remote_code=True"]),
        ("QuestionAnswering", {"promptTuning": {}}, "pvc://models/a",
         ["AutoModelForQuestionAnswering", "trust_remote_code=True"]),
        ("TextGeneration", {"promptTuning": {}}, "pvc://models/a", ["PeftModel"]),
        ("TextClassification", {"distillation": {}}, "pvc://models/a", ["from_pretrained(directory)"]),
    ],
)  # fmt: skip
def test_how_to_load_is_python(task: str, strategy: Object, uri: str, lines: list[str]) -> None:
    text = how_to_load({"task": task, "strategy": strategy}, uri)
    code = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("  ")))
    compile(code, "loading", "exec")
    for line in lines:
        assert line in code


def test_a_base_in_an_object_store_is_loaded_from_a_copy() -> None:
    strategy = {"adapter": {"type": "LoRA"}}
    spec = {"task": "TextGeneration", "model": {"uri": "s3://models/base"}, "strategy": strategy}
    text = how_to_load(spec, "s3://models/tuned")
    assert "Copy it: aws s3 cp --recursive s3://models/tuned tuned" in text
    assert 'base_directory = "..."  # a copy of s3://models/base' in text
    assert "from_pretrained(base_directory," in text
    assert "base_model_name_or_path" not in text


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
