"""The alerts: promtool plays each one's trouble and finds it firing, and its near miss and finds it silent."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed.prometheus import program

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "helm" / "finetune-operator" / "files" / "alerts.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
METRICS = ROOT / "docs" / "metrics.md"
MONITORING = ROOT / "docs" / "monitoring.md"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
JOB = {"namespace": "team", "name": "tuned"}
TEAM = {"namespace": "team"}
OPERATOR = {"namespace": "finetune-system"}


def phase(which: str, values: str) -> dict[str, str]:
    return {f'finetune_job_phase{{namespace="team",name="tuned",finetune_job_phase="{which}"}}': values}


def of_job(metric: str, values: str, /, **labels: str) -> dict[str, str]:
    more = "".join(f',{label}="{value}"' for label, value in labels.items())
    return {f'finetune_job_{metric}{{namespace="team",name="tuned"{more}}}': values}


def at(metric: str, *minutes: int) -> dict[str, str]:
    """A time that the job tells; of a job that is created anew another one, from that minute on."""
    ends = (*minutes[1:], minutes[-1] + 600)
    spans = [f"{minute * 60}x{end - minute - 1}" for minute, end in zip(minutes, ends, strict=True)]
    return of_job(f"{metric}_time_seconds", " ".join([f"_x{minutes[0]}" if minutes[0] else "", *spans]).strip())


def ended(outcome: str, reason: str, values: str, instance: str = "a") -> dict[str, str]:
    labels = f'namespace="team",outcome="{outcome}",reason="{reason}",instance="{instance}"'
    return {f"finetune_jobs_ended_total{{{labels}}}": values}


def leader(replica: str, values: str, namespace: str = "finetune-system") -> dict[str, str]:
    labels = f'name="finetunejob",namespace="{namespace}",instance="{replica}"'
    return {f"leader_election_master_status{{{labels}}}": values}


def workers(replica: str, values: str, namespace: str = "finetune-system") -> dict[str, str]:
    labels = f'controller="finetunejob",namespace="{namespace}",instance="{replica}"'
    return {f"controller_runtime_max_concurrent_reconciles{{{labels}}}": values}


def reconciles(good: str, bad: str, namespace: str = "finetune-system") -> dict[str, str]:
    controller = f'controller="finetunejob",namespace="{namespace}"'
    errors = {f"controller_runtime_reconcile_errors_total{{{controller}}}": bad}
    total = f"controller_runtime_reconcile_total{{{controller},result="
    return {f'{total}"success"}}': good, f'{total}"error"}}': bad, **(errors if bad else {})}


def certificate(replica: str, which: str, values: str, namespace: str = "finetune-system") -> dict[str, str]:
    labels = f'certificate="{which}",namespace="{namespace}",instance="{replica}"'
    return {f"finetune_certificate_expiration_timestamp_seconds{{{labels}}}": values}


RUNNING = phase("Running", "1x600")
DAY = 86400
UNKNOWN = " ".join(["NaN"] * 61)


@dataclass(frozen=True)
class Case:
    """Series at a sample a minute, and whether the alert fires at a minute of them."""

    alert: str
    what: str
    series: dict[str, str]
    minute: int
    fires: dict[str, str] | None = None
    """Labels of the alert; None when it is silent."""
    value: str = ""
    """What the description says of the value."""


def failed(*minutes: int) -> dict[str, str]:
    """A job that fails at a minute; at each further one another job of its name does, created 20 minutes before."""
    phases, told, last = "", "", 0
    for minute in minutes:
        started = minute - 20
        gone = f"{'stale ' if last else ''}_x{started - last - 1} " if last else f"_x{started} "
        phases += f"{gone}0x19 1x9 "
        told += f"{gone}_x20 {minute * 60}x9 "
        last = minute + 10
    return {**phase("Failed", f"{phases}1x500"), **of_job("completion_time_seconds", f"{told}{minutes[-1] * 60}x500")}


CASES = [
    Case("FineTuneJobStalled", "no step for 31 minutes",
         {**RUNNING, **of_job("steps_done", "1+1x9 10x60")}, 41, JOB),
    Case("FineTuneJobStalled", "the operator takes no reports", RUNNING, 60),
    Case("FineTuneJobStalled", "another replica has come to lead meanwhile",
         {'finetune_job_phase{namespace="team",name="tuned",finetune_job_phase="Running",instance="a"}': "1x19 stale",
          'finetune_job_phase{namespace="team",name="tuned",finetune_job_phase="Running",instance="b"}': "_x20 1x60",
          'finetune_job_steps_done{namespace="team",name="tuned",instance="a"}': "1+1x9 10x9 stale",
          'finetune_job_steps_done{namespace="team",name="tuned",instance="b"}': "_x20 10x60"}, 41, JOB),
    Case("FineTuneJobStalled", "no step for 29 minutes", {**RUNNING, **of_job("steps_done", "1+1x9 10x60")}, 38),
    Case("FineTuneJobStalled", "a step every four minutes",
         {**RUNNING, **of_job("steps_done", "0x3 1x3 2x3 3x3 4x3 5x3 6x3 7x3 8x3 9x3 10x3 11x3")}, 45),
    Case("FineTuneJobStalled", "no step, but it is suspended",
         {**phase("Running", "0x60"), **phase("Suspended", "1x60"), **of_job("steps_done", "9x60")}, 60),
    Case("FineTuneJobStalled", "it goes on from a checkpoint, at fewer steps",
         {**RUNNING, **of_job("steps_done", "100x20 50+1x40")}, 40),
    Case("FineTuneJobSilent", "no report for 31 minutes", RUNNING, 31, JOB),
    Case("FineTuneJobSilent", "for 29 minutes", RUNNING, 29),
    Case("FineTuneJobSilent", "it stands at step 0", {**RUNNING, **of_job("steps_done", "_x9 0x60")}, 45),
    Case("FineTuneJobNotStarting", "half an hour", phase("Pending", "1x40"), 31, JOB),
    Case("FineTuneJobNotStarting", "29 minutes", phase("Pending", "1x40"), 29),
    Case("FineTuneJobNotStarting", "it has started since", phase("Pending", "1x35 0x20"), 40),
    Case("FineTuneJobFailed", "a minute ago", failed(100), 101, JOB),
    Case("FineTuneJobFailed", "59 minutes ago", failed(100), 159, JOB),
    Case("FineTuneJobFailed", "61 minutes ago", failed(100), 161),
    Case("FineTuneJobFailed", "long ago, and the operator was away meanwhile",
         {**phase("Failed", "1x98 _x9 1x200"), **at("completion", 0)}, 110),
    Case("FineTuneJobFailed", "again, under the name of one that failed an hour ago", failed(100, 140), 165, JOB),
    Case("FineTuneJobFailed", "that one failed, and the new one runs", {**failed(100, 140)}, 130),
    Case("FineTuneJobsFailing", "the first three of a namespace fail",
         ended("Failed", "NetworkUnavailable", "_x70 1 2 3 3x60"), 75, TEAM, "3"),
    Case("FineTuneJobsFailing", "four fail and one completes, under several reasons",
         {**ended("Failed", "NetworkUnavailable", "5x70 6 7 7x60"), **ended("Failed", "StorageFull", "5x70 6 7 7x60"),
          **ended("Complete", "Complete", "50x70 51 51x60")}, 100, TEAM, "4"),
    Case("FineTuneJobsFailing", "three fail, and the operator's pod is replaced",
         {**ended("Failed", "StorageFull", "_x70 1 2 3 3x2 stale"),
          **ended("Complete", "Complete", "_x80 1x60", "b")}, 90, TEAM, "3"),
    Case("FineTuneJobsFailing", "the operator's pod is replaced, whose jobs failed long ago",
         {**ended("Failed", "StorageFull", "9x75 stale"), **ended("Failed", "StorageFull", "_x80 1x60", "b")}, 100),
    Case("FineTuneJobsFailing", "two fail before the operator's pod is replaced, and one after it",
         {**ended("Failed", "StorageFull", "9x70 10 11 11x9 stale"),
          **ended("Failed", "StorageFull", "_x85 1x60", "b")}, 100, TEAM, "3"),
    Case("FineTuneJobsFailing", "as many complete as fail",
         {**ended("Failed", "NetworkUnavailable", "5x70 6 7 8 8x60"),
          **ended("Complete", "Complete", "50x70 51 52 53 53x60")}, 100),
    Case("FineTuneJobsFailing", "two fail", ended("Failed", "DataInvalid", "5x70 6 7 7x60"), 100),
    Case("FineTuneJobsFailing", "many have failed, but long ago", ended("Failed", "DataInvalid", "0x9 50x200"), 150),
    Case("FineTuneJobDiverging", "from 0.5 to 2 for 11 minutes",
         {**RUNNING, **at("creation", 0), **of_job("loss", "2-0.1x14 0.5x9 2x20")}, 37, JOB, "2"),
    Case("FineTuneJobDiverging", "a peak of five minutes",
         {**RUNNING, **at("creation", 0), **of_job("loss", "2-0.1x14 0.5x9 2x4 0.5x20")}, 29),
    Case("FineTuneJobDiverging", "small and noisy",
         {**RUNNING, **at("creation", 0), **of_job("loss", "0.01x20 0.09x20")}, 40),
    Case("FineTuneJobDiverging", "high, but the job has ended",
         {**phase("Running", "1x25 0x40"), **at("creation", 0), **of_job("loss", "0.5x24 2x40")}, 50),
    Case("FineTuneJobDiverging", "an earlier job of its name came far lower",
         {**RUNNING, **at("creation", 0, 30), **of_job("loss", "2 0.1x27 stale _x1 2x60")}, 60),
    Case("FineTuneJobDiverging", "it was made anew between two scrapes",
         {**RUNNING, **at("creation", 0, 30), **of_job("loss", "2 0.1x28 2x60")}, 60),
    Case("FineTuneJobDiverging", "it diverges too, after an earlier job of its name",
         {**RUNNING, **at("creation", 0, 30), **of_job("loss", "2 0.1x27 stale _x1 2x9 0.8x9 2x60")}, 65, JOB, "2"),
    Case("FineTuneJobDiverging", "its least was more than six hours ago",
         {**RUNNING, **at("creation", 0), **of_job("loss", "0.5x20 2x560")}, 395),
    Case("FineTuneJobsNonFinite", "the first of a namespace",
         ended("Failed", "NonFiniteLoss", "_x70 1x60"), 75, TEAM, "1"),
    Case("FineTuneJobsNonFinite", "the first, and the operator's pod is replaced",
         ended("Failed", "NonFiniteLoss", "_x70 1x3 stale"), 80, TEAM, "1"),
    Case("FineTuneJobsNonFinite", "the operator's pod is replaced, and had seen one long ago",
         ended("Failed", "NonFiniteLoss", "1x75 stale"), 80),
    Case("FineTuneJobsNonFinite", "one more", ended("Failed", "NonFiniteLoss", "4x70 5x60"), 75, TEAM, "1"),
    Case("FineTuneJobsNonFinite", "one long ago", ended("Failed", "NonFiniteLoss", "4x70 5x90"), 150),
    Case("FineTuneJobsNonFinite", "another reason", ended("Failed", "DataInvalid", "_x70 1x60"), 75),
    Case("FineTuneJobForgetting", "8 points lost while it trains",
         {**RUNNING, **of_job("forgetting", "0.08x20", metric="drop")}, 6, JOB, "0.08"),
    Case("FineTuneJobForgetting", "an hour after its end",
         {**phase("Complete", "0x9 1x600"), **at("completion", 10), **of_job("forgetting", "0.08x600", metric="drop")},
         70, JOB, "0.08"),
    Case("FineTuneJobForgetting", "while it trains, under the name of one that ended seven hours ago",
         {**phase("Complete", "0x9 1x390 0x200"),
          **of_job("completion_time_seconds", "_x10 600x390 stale"),
          **of_job("forgetting", "0.01x400 0.08x200", metric="drop")}, 430, JOB, "0.08"),
    Case("FineTuneJobForgetting", "seven hours after its end",
         {**phase("Complete", "0x9 1x600"), **at("completion", 10), **of_job("forgetting", "0.08x600", metric="drop")},
         430),
    Case("FineTuneJobForgetting", "little", {**RUNNING, **of_job("forgetting", "0.04x20", metric="drop")}, 15),
    Case("FineTuneJobForgetting", "what it was before is no drop",
         {**RUNNING, **of_job("forgetting", "0.9x20", metric="before")}, 15),
    Case("FineTuneJobCheckpointOld", "66 minutes", of_job("checkpoint_age_seconds", "0+60x80"), 66, JOB, "1h 6m 0s"),
    Case("FineTuneJobCheckpointOld", "64 minutes", of_job("checkpoint_age_seconds", "0+60x80"), 64),
    Case("FineTuneJobCheckpointOld", "one every half hour",
         of_job("checkpoint_age_seconds", "0+60x30 0+60x30 0+60x30"), 90),
    Case("FineTuneJobNoCheckpoint", "61 minutes of steps",
         {**RUNNING, **of_job("steps_done", "1+1x80")}, 62, JOB),
    Case("FineTuneJobNoCheckpoint", "59 minutes of steps", {**RUNNING, **of_job("steps_done", "1+1x80")}, 59),
    Case("FineTuneJobNoCheckpoint", "there is one",
         {**RUNNING, **of_job("steps_done", "1+1x80"), **of_job("checkpoint_age_seconds", "60x80")}, 75),
    Case("FineTuneJobNoCheckpoint", "it does not report at all", RUNNING, 75),
    Case("FineTuneOperatorDown", "none is scraped any more", leader("a", "1x9"), 21, {"name": "finetunejob"}),
    Case("FineTuneOperatorDown", "for four minutes", leader("a", "1x9"), 18),
    Case("FineTuneOperatorDown", "a rolling update", {**leader("a", "1x9"), **leader("b", "_x12 0x2 1x20")}, 21),
    Case("FineTuneOperatorDown", "another controller is no sign of life",
         {'leader_election_master_status{name="other"}': "1x60"}, 21, {"name": "finetunejob"}),
    Case("FineTuneOperatorNoLeader", "two that follow", {**leader("a", "0x20"), **leader("b", "0x20")}, 5, OPERATOR),
    Case("FineTuneOperatorNoLeader", "the release beside it has one",
         {**leader("a", "0x20"), **leader("b", "1x20", "other")}, 5, OPERATOR),
    Case("FineTuneOperatorNoLeader", "for two minutes", leader("a", "0x20"), 2),
    Case("FineTuneOperatorNoLeader", "one leads", {**leader("a", "0x20"), **leader("b", "1x20")}, 15),
    Case("FineTuneOperatorNoLeader", "the lead changes hands",
         {**leader("a", "1x9 0x20"), **leader("b", "0x11 1x20")}, 15),
    Case("FineTuneOperatorNotStarting", "one leads and cannot list", leader("a", "0 1x60"), 7, OPERATOR),
    Case("FineTuneOperatorNotStarting", "for four minutes", leader("a", "0 1x60"), 5),
    Case("FineTuneOperatorNotStarting", "each that comes to lead is started anew after two minutes",
         {**leader("a", "1x2 stale _x4 1x2 stale _x4 1x2 stale"), **leader("b", "_ 0x2 1x2 stale _x4 1x2 stale")},
         15, OPERATOR),
    Case("FineTuneOperatorNotStarting", "the release beside it works",
         {**leader("a", "1x60"), **leader("b", "1x60", "other"), **workers("b", "16x60", "other")}, 30, OPERATOR),
    Case("FineTuneOperatorNotStarting", "it works", {**leader("a", "1x60"), **workers("a", "_ 16x60")}, 30),
    Case("FineTuneOperatorNotStarting", "the lead changes hands, and the new one lists for four minutes",
         {**leader("a", "1x20 stale"), **workers("a", "16x20 stale"),
          **leader("b", "0x20 1x60"), **workers("b", "_x25 16x60")}, 27),
    Case("FineTuneOperatorNotStarting", "none is scraped any more",
         {**leader("a", "1x20 stale"), **workers("a", "16x20 stale")}, 32),
    Case("FineTuneOperatorNotStarting", "none leads", leader("a", "0x60"), 30),
    Case("FineTuneOperatorReconcileErrors", "a fifth fails", reconciles("0+8x60", "0+2x60"), 30, OPERATOR, "20%"),
    Case("FineTuneOperatorReconcileErrors", "a fifth fails, and of the release beside it none of many",
         {**reconciles("0+8x60", "0+2x60"), **reconciles("0+900x60", "", "other")}, 30, OPERATOR, "20%"),
    Case("FineTuneOperatorReconcileErrors", "for ten minutes", reconciles("0+8x60", "0+2x60"), 10),
    Case("FineTuneOperatorReconcileErrors", "one in a hundred", reconciles("0+99x60", "0+1x60"), 30),
    Case("FineTuneOperatorReconcileErrors", "none ever failed", reconciles("0+8x60", ""), 30),
    Case("FineTuneCertificateExpires", "of two replicas, for both of their servers, in 13 days",
         {**certificate("a", "metrics", f"{13 * DAY}x60"), **certificate("a", "progress", f"{13 * DAY}x60"),
          **certificate("b", "metrics", f"{13 * DAY}x60"), **certificate("b", "progress", f"{13 * DAY}x60")},
         60, OPERATOR, "12d 23h 0m 0s"),
    Case("FineTuneCertificateExpires", "of one server in 13 days, of the other in years",
         {**certificate("a", "metrics", f"{13 * DAY}x60"), **certificate("a", "progress", f"{999 * DAY}x60")},
         60, OPERATOR, "12d 23h 0m 0s"),
    Case("FineTuneCertificateExpires", "it was renewed, and one replica has not taken it up",
         {**certificate("a", "progress", f"{13 * DAY}x9 {99 * DAY}x60"),
          **certificate("b", "progress", f"{13 * DAY}x60")}, 60, OPERATOR, "12d 23h 0m 0s"),
    Case("FineTuneCertificateExpires", "it has ended, and is scraped all the same",
         certificate("a", "progress", "1800x90"), 60, OPERATOR, "-30m 0s"),
    Case("FineTuneCertificateExpires", "of the release beside it in years",
         {**certificate("a", "progress", f"{13 * DAY}x60"), **certificate("a", "progress", f"{99 * DAY}x60", "other")},
         60, OPERATOR, "12d 23h 0m 0s"),
    Case("FineTuneCertificateExpires", "of one server in 13 days, of the other nobody knows",
         {**certificate("a", "metrics", UNKNOWN), **certificate("a", "progress", f"{13 * DAY}x60")},
         60, OPERATOR, "12d 23h 0m 0s"),
    Case("FineTuneCertificateExpires", "nobody knows when", certificate("a", "metrics", UNKNOWN), 60),
    Case("FineTuneCertificateExpires", "in 14 days and an hour",
         certificate("a", "progress", f"{14 * DAY + 7200}x60"), 60),
    Case("FineTuneCertificateExpires", "it was renewed",
         {**certificate("a", "progress", f"{13 * DAY}x40 {99 * DAY}x60"),
          **certificate("b", "progress", f"{13 * DAY}x41 {99 * DAY}x60")}, 60),
    Case("FineTuneCertificateExpires", "nothing is served over TLS", leader("a", "1x60"), 60),
]  # fmt: skip


def expected(case: Case) -> list[dict[str, Any]]:
    """The alert as it is sent: its texts have the case's labels and value in the place of their templates."""
    if case.fires is None:
        return []
    labels = case.fires
    texts = {}
    for name, text in ALERTS[case.alert]["annotations"].items():
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        texts[name] = re.sub(r"\{\{ \$value[^}]*\}\}", case.value or "no value is given in this case", text)
    return [{"exp_labels": {**labels, **ALERTS[case.alert]["labels"]}, "exp_annotations": texts}]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.what}")
def test_alert_fires_at_its_trouble_and_at_nothing_else(case: Case, tmp_path: Path) -> None:
    asked = {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected(case)}
    series = [{"series": name, "values": values} for name, values in case.series.items() if values]
    tests = [{"interval": "1m", "input_series": series, "alert_rule_test": [asked]}]
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([program("promtool"), "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_seen_firing_and_silent(alert: str) -> None:
    seen = {case.fires is not None for case in CASES if case.alert == alert}
    assert seen == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_says_what_it_is_and_leads_to_its_runbook(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}, "a path is no runbook_url"
    base, anchor = rule["annotations"]["runbook"].split("#")
    assert base == "docs/runbooks.md"
    sections = re.split(r"^## ", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]
    section = {text.partition("\n")[0].lower(): text for text in sections}[anchor]
    assert section.startswith(alert)
    for part in ("**What it means.**", "**Look.**", "**Do.**"):
        assert part in section


def test_commands_of_the_runbooks_need_nothing_put_in_but_what_is_said_at_the_top() -> None:
    text = RUNBOOKS.read_text()
    top, runbooks = text.split("\n## ", 1)
    given = set(re.findall(r"\b([A-Z]+)=", top))
    assert given == {"NS", "NAME", "OPNS", "OP"}
    commands = re.findall(r"`(kubectl [^`]+)`", runbooks)
    assert len(commands) > 10
    for command in commands:
        assert set(re.findall(r"\$(\w+)", command)) <= given, command
        assert not re.search(r"finetune-system|deploy/finetune-operator|(?<!\$)\b(NS|NAME)\b", command), command


def test_the_list_of_alerts_is_complete() -> None:
    listed = re.findall(r"^\| `(FineTune\w+)` \| (\w+) \|", MONITORING.read_text(), flags=re.MULTILINE)
    assert listed == [(alert, rule["labels"]["severity"]) for alert, rule in ALERTS.items()]


def test_no_runbook_is_of_an_alert_that_is_not_there() -> None:
    headings = re.findall(r"^## (FineTune\w+)$", RUNBOOKS.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(ALERTS)


def test_every_metric_of_an_alert_is_documented() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", METRICS.read_text(), flags=re.MULTILINE))
    used = {
        name
        for rule in ALERTS.values()
        for name in re.findall(r"\b(?:finetune|controller|leader|workqueue)_\w+(?=[{\[ )])", rule["expr"])
    }
    assert len(used) >= 8
    assert used <= documented
