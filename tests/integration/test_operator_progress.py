"""The progress protocol: TLS, real tokens bound to pods, an answer with a reason to every wrong report."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from operator_jobs import job, pod_token, report, report_path
from testbed.client import Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import OperatorProcess, service_account_token

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.slow]

INTERVAL_SECONDS = 15
AT_ONCE_SECONDS = 5
LIMIT_BYTES = 64 * 1024


class Training:
    """A job whose pod runs, and that pod's token."""

    def __init__(self, cluster: Cluster, namespace: Namespace, name: str) -> None:
        self.namespace = namespace
        self.name = name
        namespace.apply(job(), name)
        self.pod: Object = namespace.bound_pod(name)
        cluster.kubelet.run(self.pod)
        namespace.until(name, "Running")
        self.token = pod_token(cluster, namespace, self.pod)
        self.path = report_path(namespace, name)


@pytest.fixture(scope="module")
def team(cluster: Cluster, operator: OperatorProcess) -> Namespace:
    return cluster.namespace()


@pytest.fixture(scope="module")
def training(cluster: Cluster, team: Namespace) -> Training:
    return Training(cluster, team, "training")


@pytest.fixture(scope="module")
def other(cluster: Cluster, team: Namespace) -> Training:
    return Training(cluster, team, "other")


@dataclass(frozen=True)
class Steady:
    """A training that reported every two seconds."""

    training: Training
    started: datetime
    steps: int


@pytest.fixture(scope="module", autouse=True)
def steady(cluster: Cluster, operator: OperatorProcess, team: Namespace) -> Iterator[Future[Steady]]:
    """It goes on while the other tests of this file run."""
    training = Training(cluster, team, "steady")

    def keep_reporting() -> Steady:
        started, deadline = datetime.now(UTC), time.monotonic() + 2 * INTERVAL_SECONDS + 4
        for step in itertools.count(1):
            assert operator.report(training.path, report(step, loss=1 / step), training.token) == 200
            time.sleep(2)
            if time.monotonic() > deadline:
                break
        return Steady(training, started, step)

    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(keep_reporting)


def loss(operator: OperatorProcess, training: Training) -> float | None:
    """The loss that /metrics shows of a job."""
    start = f'finetune_job_loss{{name="{training.name}",namespace="{training.namespace.name}"}} '
    lines = [line for line in operator.metrics().splitlines() if line.startswith(start)]
    return float(lines[0].removeprefix(start)) if lines else None


def test_every_report_reaches_the_metrics_at_once(operator: OperatorProcess, training: Training) -> None:
    for step, value in ((1, 0.9), (2, 0.8), (3, 0.7)):
        answer = operator.report_answer(training.path, report(step, loss=value), training.token)
        assert answer == (200, '{"message": "noted"}')
        assert loss(operator, training) == value


def test_token_of_another_jobs_pod_is_refused(operator: OperatorProcess, training: Training, other: Training) -> None:
    status, said = operator.report_answer(training.path, report(1), other.token)
    assert status == 403
    assert f"pod {other.namespace.name}/{other.pod['metadata']['name']} is not a pod of FineTuneJob" in said


def test_token_of_a_pod_that_is_no_jobs_is_refused(
    cluster: Cluster, operator: OperatorProcess, team: Namespace, training: Training
) -> None:
    """A user who may make pods cannot speak for a job by giving a pod its label."""
    spec = {**training.pod["spec"], "nodeName": ""}
    spec = {key: value for key, value in spec.items() if key in ("containers", "securityContext", "restartPolicy")}
    container = {k: spec["containers"][0][k] for k in ("name", "image", "securityContext")}
    spec["containers"] = [container]
    labels = training.pod["metadata"]["labels"]
    owned = {key: value for key, value in labels.items() if not key.startswith(("batch.", "controller-", "job-name"))}
    body = {"metadata": {"name": "intruder", "labels": owned}, "spec": spec}
    intruder = cluster.client.create(team.path("pods"), body)
    assert operator.report(training.path, report(99), pod_token(cluster, team, intruder)) == 403


@pytest.mark.security(4)
@pytest.mark.parametrize("kind", ["other audience", "account without a pod", "no token", "no JWT", "the API server's"])
def test_token_that_is_not_the_pods_own_is_refused(
    cluster: Cluster, operator: OperatorProcess, team: Namespace, training: Training, kind: str
) -> None:
    server = cluster.server
    account = {"account": "default", "namespace": team.name}
    audience = "--audience=finetune-operator.io/progress"
    tokens: dict[str, Callable[[], str]] = {
        "other audience": lambda: pod_token(cluster, team, training.pod, audience="vault"),
        "account without a pod": lambda: service_account_token(server, audience, **account),
        "no token": lambda: "",
        "no JWT": lambda: "abc.def.ghi",
        "the API server's": lambda: service_account_token(server, **account),
    }
    token = tokens[kind]()
    status, said = operator.report_answer(training.path, report(1), token)
    assert status == 401
    assert "token" in said


def test_job_that_is_not_there_is_refused(operator: OperatorProcess, team: Namespace, training: Training) -> None:
    assert operator.report(report_path(team, "nobody"), report(1), training.token) == 403


def test_body_over_the_limit_is_refused(operator: OperatorProcess, other: Training) -> None:
    status, said = operator.report_answer(other.path, b" " * (LIMIT_BYTES + 1) + report(1), other.token)
    assert (status, str(LIMIT_BYTES) in said) == (413, True)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not json", "Invalid JSON"),
        (b"{}", "trainerStatus: Field required"),
        (b'{"trainerStatus": {}}', "trainerStatus.lastUpdatedTime: Field required"),
        (json.dumps({"trainerStatus": {"lastUpdatedTime": "yesterday"}}).encode(), "trainerStatus.lastUpdatedTime"),
        (b'{"trainerStatus": {"lastUpdatedTime": "2026-01-01T00:00:00Z", "progressPercentage": 101}}',
         "trainerStatus.progressPercentage"),
        (b'{"trainerStatus": {"lastUpdatedTime": "2026-01-01T00:00:00Z", "progressPercentage": NaN}}',
         "trainerStatus.progressPercentage"),
        (b'{"trainerStatus": {"lastUpdatedTime": "2026-01-01T00:00:00Z", "metrics": [{"name": "loss", "value": 0.5}]}}',
         "trainerStatus.metrics.0.value"),
    ],
)  # fmt: skip
def test_malformed_report_is_refused_with_the_field_named(
    cluster: Cluster, operator: OperatorProcess, team: Namespace, body: bytes, said: str
) -> None:
    sender = Training(cluster, team, f"malformed-{abs(hash(body))}")
    status, reason = operator.report_answer(sender.path, body, sender.token)
    assert status == 400
    assert said in reason


def test_number_that_is_not_finite_is_left_out(cluster: Cluster, operator: OperatorProcess, team: Namespace) -> None:
    diverged = Training(cluster, team, "diverged")
    assert operator.report(diverged.path, report(1, loss=0.5, learning_rate=0.1), diverged.token) == 200
    for value in ("NaN", "inf", "-Infinity", "1e999"):
        assert operator.report(diverged.path, report(2, loss=value, learning_rate=0.1), diverged.token) == 200
        assert loss(operator, diverged) is None
    assert "NaN" not in operator.metrics()


def test_too_many_reports_are_refused_for_that_pod_alone(
    cluster: Cluster, operator: OperatorProcess, team: Namespace
) -> None:
    busy, calm = Training(cluster, team, "busy"), Training(cluster, team, "calm")
    answers = [operator.report(busy.path, report(step), busy.token) for step in range(15)]
    assert answers[:10] == [200] * 10
    assert 429 in answers[10:]
    assert operator.report(calm.path, report(1), calm.token) == 200


def test_report_of_an_ended_job_changes_nothing(cluster: Cluster, operator: OperatorProcess, team: Namespace) -> None:
    ended = Training(cluster, team, "ended")
    assert operator.report(ended.path, report(50, loss=0.5), ended.token) == 200
    cluster.kubelet.end(ended.pod, 0)
    team.until("ended", "Complete")
    status = team.job("ended")["status"]
    assert operator.report(ended.path, report(60, loss=0.1), ended.token) == 200
    assert loss(operator, ended) == 0.5
    time.sleep(1)
    assert team.job("ended")["status"] == status


def test_no_token_is_in_the_log(operator: OperatorProcess, training: Training) -> None:
    assert eventually(operator.log, "a log")
    assert training.token not in operator.log()
    assert training.token.split(".")[2] not in operator.log()


def test_status_is_written_at_once_then_at_most_every_fifteen_seconds_and_with_the_newest(
    cluster: Cluster, operator: OperatorProcess, team: Namespace, steady: Future[Steady]
) -> None:
    seen = steady.result()
    written = team.job("steady")["status"]["progress"]
    audit = cluster.server.audit.writes(operator.credential, since=seen.started)
    times = [write.time for write in audit if write.name == "steady" and write.resource == "finetunejobs/status"]
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)]
    assert gaps, "written more than once"
    assert (times[0] - seen.started).total_seconds() < AT_ONCE_SECONDS, "the first report is written at once"
    assert min(gaps) >= INTERVAL_SECONDS - 0.5
    assert max(gaps) <= INTERVAL_SECONDS + 5
    assert written["step"] > seen.steps - 1 - (INTERVAL_SECONDS + 5) / 2
    assert float(written["loss"]) == pytest.approx(1 / written["step"])
