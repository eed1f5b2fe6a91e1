"""`kubectl finetune watch` and `logs` over recorded objects: each news once, and an end with the job's."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from finetune_api.exit_codes import ExitCode
from finetune_cli.kubectl.cluster import Change, ClusterProblem
from finetune_cli.kubectl.logs import logs, newest_attempt
from finetune_cli.kubectl.watch import watch
from kubectl_records import RAN, Object, Recorded, change, console, job, pod, progress, said


def test_watch_tells_each_news_once_and_ends_with_the_jobs_code() -> None:
    cluster, out = Recorded(job()), console()
    failed = job(phase="Failed", reason="NonFiniteLoss", message="the loss is NaN at step 30; lower the rate")
    cluster.changes = [
        change(job(phase="Pending", reason="Unschedulable", message="0/3 nodes")),
        None,
        change(job(phase="Running", reason="PodsRunning", progress=progress(20, evaluation={"accuracy": "0.75"}))),
        change(job(phase="Running", reason="PodsRunning", progress=progress(20, evaluation={"accuracy": "0.75"}))),
        change(failed),
    ]
    assert watch(cluster, "team", "router", out) == ExitCode.NON_FINITE_LOSS
    assert said(out).splitlines()[:4] == [
        "router: Pending: Unschedulable",
        "router: Running",
        "router: step 20/100 loss 0.9000 ETA 1:30",
        "router: evaluation so far (step 20): accuracy 0.7500",
    ]
    assert said(out).count("step 20/100") == said(out).count("evaluation so far") == 1
    assert "router failed: NonFiniteLoss: the loss is NaN at step 30; lower the rate" in said(out)
    assert "lower training.learningRate" in said(out)


def test_watch_of_all_waits_for_those_that_have_not_ended_and_for_newer_ones() -> None:
    cluster, out = Recorded(), console()
    cluster.changes = [
        change(job("old", phase="Failed", reason="DataInvalid")),
        change(job("one", phase="Running")),
        None,
        change(job("two", phase="Running")),
        change(job("one", phase="Complete")),
        change(job("two", phase="Complete")),
    ]
    assert watch(cluster, "team", None, out) == 0
    assert "old" not in said(out)
    assert said(out).splitlines() == ["one: Running", "two: Running", "one: Complete", "two: Complete"]


def test_watch_of_a_job_that_is_deleted_is_no_success() -> None:
    cluster, out = Recorded(job()), console()
    cluster.changes = [change(job(phase="Running")), None, Change("team", "router", None)]
    assert watch(cluster, "team", "router", out) == ExitCode.INTERNAL_ERROR
    assert "router was deleted before its end" in said(out)


def test_watch_of_an_ended_job_says_so_at_once() -> None:
    cluster, out = Recorded(job()), console()
    cluster.changes = [change(job(phase="Failed", reason="StorageFull", message="the disk is full")), None]
    assert watch(cluster, "team", "router", out) == ExitCode.STORAGE_FULL


def test_watch_shows_bars_under_each_other_in_a_terminal() -> None:
    cluster = Recorded()
    out = Console(file=io.StringIO(), width=120, force_terminal=True)
    cluster.changes = [
        change(job("one", phase="Running", progress=progress(40, evaluation={"accuracy": "0.75"}))),
        change(job("two", phase="Pending", reason="Unschedulable")),
        None,
        change(job("one", phase="Complete", progress=progress(100))),
        change(job("two", phase="Complete", progress=progress(100))),
    ]
    assert watch(cluster, "team", None, out) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said(out))
    assert re.search(r"one Complete +━+ 100/100 loss 0\.5000 accuracy 0\.7500 ETA -", plain)
    assert re.search(r"two Complete +━+ 100/100", plain)


def test_logs_are_of_the_newest_pod_of_each_node_of_the_newest_job() -> None:
    pods = [
        pod("old-0", job_uid="earlier"),
        *(pod(f"node-{index}", index=str(index)) for index in (10, 2, 0)),
        pod("node-2-again", index="2"),
    ]
    assert [each.name for each in newest_attempt(pods)] == ["node-0", "node-2-again", "node-10"]


def test_logs_of_several_nodes_carry_the_node() -> None:
    cluster = Recorded(
        job(phase="Running"), pods=(pod("a", running=RAN), pod("b", index="1", running=RAN))
    )  # fmt: skip
    cluster.logs = {"a": ["[bold]step 1", "step 2"], "b": ["step 1"]}
    out = console()
    assert logs(cluster, "team", "router", out) == 0
    assert sorted(said(out).splitlines()) == ["[0] [bold]step 1", "[0] step 2", "[1] step 1"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (job(phase="Pending", reason="ImagePullFailed", message="cannot be pulled"), "ImagePullFailed: cannot"),
        (job(phase="Complete"), "are gone, and their logs"),
    ],
)  # fmt: skip
def test_without_a_log_the_reason_is_said(body: Object, message: str) -> None:
    with pytest.raises(ClusterProblem, match=message):
        logs(Recorded(body, pods=(pod("a", waiting={"reason": "ErrImagePull"}),)), "team", "router", console())
