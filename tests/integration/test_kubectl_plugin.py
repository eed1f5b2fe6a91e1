"""`kubectl finetune`, run by the real kubectl, against a real API server and the running operator."""

from __future__ import annotations

import os
import shlex
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from operator_jobs import COMPLETE, job, last_words, pod_token, report, report_path
from testbed.client import Object, eventually
from testbed.cluster import Cluster, Namespace
from testbed.kubelet import NODE
from testbed.operator_process import OperatorProcess
from testbed.processes import HOST
from testbed.proxy import Proxy

pytest_plugins = ["testbed.plugin"]
pytestmark = pytest.mark.integration

Plugin = Callable[..., subprocess.CompletedProcess[str]]
WATCH_SECONDS = 60
FIRST_LINES = ["loading the model", "step 1 loss 0.9"]
LATER_LINES = ["step 2 loss 0.8", "done"]


@pytest.fixture(scope="module")
def environment(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As a user has it: kubectl and the plugin on the PATH, and a kubeconfig."""
    folder = tmp_path_factory.mktemp("bin")
    plugin = folder / "kubectl-finetune"
    plugin.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m finetune_cli.kubectl.main "$@"\n')
    plugin.chmod(0o755)
    (folder / "kubectl").symlink_to(cluster.server.binaries.kubectl)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "KUBECONFIG": str(cluster.server.kubeconfig),
        "KUBERC": "off",
    }


@pytest.fixture
def finetune(environment: dict[str, str], namespace: Namespace) -> Plugin:
    """Run the plugin in the test's namespace."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "finetune", *arguments]
        if not {"-A", "-n"} & set(arguments):
            command += ["-n", namespace.name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WATCH_SECONDS)

    return run


class Watch:
    """A watch that runs beside the test."""

    def __init__(self, environment: dict[str, str], namespace: Namespace, name: str) -> None:
        command = ["kubectl", "finetune", "watch", name, "-n", namespace.name]
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(iter(self._process.stdout.readline, ""))

    def until(self, text: str) -> None:
        eventually(lambda: any(text in line for line in self._lines), f"{text!r} in {self._lines}", WATCH_SECONDS)

    def end(self) -> tuple[int, str]:
        """Wait for its end; returns the exit code and all that it has said."""
        code = self._process.wait(WATCH_SECONDS)
        self._reader.join()
        return code, "".join(self._lines)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def watching(environment: dict[str, str], namespace: Namespace) -> Iterator[Callable[[str], Watch]]:
    started: list[Watch] = []

    def start(name: str) -> Watch:
        started.append(Watch(environment, namespace, name))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.mark.usefixtures("operator")
def test_watch_follows_a_job_to_its_end_and_result_says_what_it_did(
    cluster: Cluster,
    operator: OperatorProcess,
    namespace: Namespace,
    finetune: Plugin,
    watching: Callable[[str], Watch],
) -> None:
    namespace.apply(job(), "tuned")
    pod = namespace.bound_pod("tuned")
    watch = watching("tuned")
    watch.until("tuned: Pending")
    early = finetune("result", "tuned")
    assert (early.returncode, early.stdout) == (1, "")
    assert "tuned has no result yet: Pending" in early.stderr
    cluster.kubelet.run(pod)
    watch.until("tuned: Running")
    body = report(25, eta=90, loss=0.5, eval_accuracy=0.75)
    assert operator.report(report_path(namespace, "tuned"), body, pod_token(cluster, namespace, pod)) == 200
    watch.until("tuned: step 25/100 loss 0.5000 ETA 1:30")
    watch.until("tuned: evaluation so far (step 25): accuracy 0.7500")
    cluster.kubelet.end(pod, 0, message=COMPLETE)
    code, said = watch.end()
    assert code == 0, said
    assert said.splitlines()[-1] == "tuned: Complete"
    done = finetune("result", "tuned")
    assert done.returncode == 0, done.stderr
    for part in (
        "0.5000",
        "0.7500",
        "+0.2500",
        "10 of 100 parameters",
        "aws s3 cp --recursive s3://models/tuned tuned",
    ):
        assert part in done.stdout
    assert "Complete" in finetune("list").stdout


@pytest.mark.usefixtures("operator")
def test_watch_of_a_job_that_fails_ends_with_its_code_and_describe_says_why(
    cluster: Cluster, namespace: Namespace, finetune: Plugin, watching: Callable[[str], Watch]
) -> None:
    namespace.apply(job(), "badly")
    pod = namespace.bound_pod("badly")
    cluster.kubelet.run(pod)
    namespace.until("badly", "Running")
    watch = watching("badly")
    watch.until("badly: Running")
    cluster.kubelet.end(pod, 11, message=last_words(11, "DataInvalid", "row 7 has no label", hint="label it"))
    code, said = watch.end()
    assert code == 11, said
    assert "badly failed: DataInvalid: row 7 has no label; label it" in said
    described = finetune("describe", "badly")
    assert described.returncode == 0, described.stderr
    for part in (
        f"{namespace.name}/badly: Failed: DataInvalid",
        "Why   DataInvalid: row 7 has no label; label it",
        "Do    The same manifest would fail in the same way",
        "Warning",
    ):
        assert part in described.stdout
    [row] = [line for line in described.stdout.splitlines() if line.startswith(pod["metadata"]["name"])]
    assert "DataInvalid: row 7 has no label; label it" in row


@pytest.mark.usefixtures("operator")
def test_watch_of_a_job_that_fails_though_its_trainer_is_done_is_no_success(
    cluster: Cluster, namespace: Namespace, finetune: Plugin
) -> None:
    namespace.apply(job(backoffLimit=0), "mesh")
    pod = namespace.bound_pod("mesh")
    cluster.kubelet.run(pod)
    namespace.until("mesh", "Running")
    cluster.kubelet.fail_beside(pod, "istio-proxy", 137, reason="OOMKilled", message=COMPLETE)
    watched = finetune("watch", "mesh")
    assert watched.returncode == 1, watched.stdout
    assert "mesh failed: OtherContainerFailed: " in watched.stdout


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(
    ("plural", "rule", "pod", "words", "advice"),
    [
        ("resourcequotas", {"hard": {"requests.memory": "1Gi"}}, {}, "exceeded quota: rule", "describe quota -n "),
        ("resourcequotas", {"hard": {"limits.cpu": "64"}}, {}, "must specify limits.cpu", "by a LimitRange"),
        (
            "limitranges",
            {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]},
            {},
            "maximum memory usage per Container is 1Gi",
            "describe limitrange -n ",
        ),
        (
            "limitranges",
            {"limits": []},
            {"priorityClassName": "none"},
            "no PriorityClass with name none",
            "get priorityclasses",
        ),
    ],
)
def test_describe_has_the_words_of_pods_that_are_refused_and_what_to_do_by_who_refuses(
    cluster: Cluster,
    namespace: Namespace,
    finetune: Plugin,
    plural: str,
    rule: Object,
    pod: Object,
    words: str,
    advice: str,
) -> None:
    cluster.client.create(namespace.path(plural), {"metadata": {"name": "rule"}, "spec": rule})
    if plural == "resourcequotas":
        quota = namespace.path(plural, "rule")
        eventually(lambda: "hard" in cluster.client.get(quota).get("status", {}), "the quota is counted")
    namespace.apply(job(resources={"gpusPerNode": 0, "memory": "8Gi"}, pod=pod), "tuned")
    refused = lambda: "Why   PodsRefused" in finetune("describe", "tuned").stdout  # noqa: E731
    eventually(refused, "the refusal")
    why = finetune("describe", "tuned").stdout.split("Task")[0]
    assert words in why
    assert advice in why


@pytest.mark.usefixtures("operator")
def test_watch_goes_on_when_its_connection_breaks(
    cluster: Cluster, namespace: Namespace, environment: dict[str, str], tmp_path: Path
) -> None:
    namespace.apply(job(), "tuned")
    pod = namespace.bound_pod("tuned")
    with Proxy(cluster.server).running() as proxy:
        kubeconfig = tmp_path / "kubeconfig"
        cluster.server.write_kubeconfig(kubeconfig, cluster.server.token, proxy.url)
        watch = Watch({**environment, "KUBECONFIG": str(kubeconfig)}, namespace, "tuned")
        try:
            watch.until("tuned: Pending")
            proxy.cut()
            cluster.kubelet.run(pod)
            watch.until("tuned: Running")
            proxy.cut()
            cluster.kubelet.end(pod, 0, message=COMPLETE)
            assert watch.end()[0] == 0
        finally:
            watch.kill()


@pytest.mark.usefixtures("operator")
def test_a_job_that_is_not_there_is_said_with_the_nearest_name(namespace: Namespace, finetune: Plugin) -> None:
    none = finetune("describe", "router")
    assert none.returncode == 1
    assert f"no FineTuneJob router in namespace {namespace.name}; that namespace has none" in none.stderr
    namespace.apply(job(), "ticket-router")
    for command in ("describe", "logs", "result", "watch"):
        wrong = finetune(command, "ticket-ruoter")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "did you mean ticket-router?" in wrong.stderr
        assert "Traceback" not in wrong.stderr


def test_list_of_all_namespaces_names_them(cluster: Cluster, namespace: Namespace, finetune: Plugin) -> None:
    other = cluster.namespace()
    namespace.apply(job(), "here", suspend=True)
    other.apply(job(), "there", suspend=True)
    assert "there" not in finetune("list").stdout
    rows = [line.split()[:2] for line in finetune("list", "-A").stdout.splitlines()]
    assert [namespace.name, "here"] in rows
    assert [other.name, "there"] in rows


def test_a_cluster_that_does_not_answer_is_said(environment: dict[str, str], cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    cluster.server.write_kubeconfig(file, "none", "https://127.0.0.1:9")
    started = time.monotonic()
    done = subprocess.run(
        ["kubectl", "finetune", "list"], env={**environment, "KUBECONFIG": str(file)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "the cluster at https://127.0.0.1:9 does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < WATCH_SECONDS


def test_credentials_that_are_refused_are_said(environment: dict[str, str], cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    cluster.server.write_kubeconfig(file, "not-a-token")
    done = subprocess.run(
        ["kubectl", "finetune", "list"], env={**environment, "KUBECONFIG": str(file)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "does not accept your credentials; log in as for kubectl" in done.stderr


class PlayedLogs(BaseHTTPRequestHandler):
    """The part of a kubelet that the API server asks for logs; a container that goes on when `more` is set."""

    more = threading.Event()
    asked: list[str] = []  # noqa: RUF012 - a handler is made anew for each request

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self._say(FIRST_LINES)
        if "follow=true" in self.path:
            self.more.wait(WATCH_SECONDS)
            self._say(LATER_LINES)

    def _say(self, lines: list[str]) -> None:
        self.wfile.write("".join(f"{line}\n" for line in lines).encode())
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def played_logs(cluster: Cluster) -> Iterator[None]:
    """The node answers for logs, as a kubelet does; its certificate is not checked, as with kubeadm's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.server.ca_file, cluster.server.key_file)
    server = ThreadingHTTPServer((HOST, 0), PlayedLogs)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    status: Object = {
        "addresses": [{"type": "InternalIP", "address": HOST}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_port}},
    }
    cluster.client.patch(f"/api/v1/nodes/{NODE}/status", {"status": status})
    PlayedLogs.more.clear()
    yield
    PlayedLogs.more.set()
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("operator", "played_logs")
def test_logs_are_followed_from_the_start_of_the_pod_to_its_end(
    cluster: Cluster, namespace: Namespace, environment: dict[str, str], finetune: Plugin
) -> None:
    namespace.apply(job(), "tuned")
    pod = namespace.bound_pod("tuned")
    early = finetune("logs", "tuned")
    assert early.returncode == 1
    assert "no pod of tuned has started, so there is no log yet: Pending, PodsPending" in early.stderr
    command = ["kubectl", "finetune", "logs", "-f", "tuned", "-n", namespace.name]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            cluster.kubelet.run(pod)
            assert [following.stdout.readline().strip() for _ in FIRST_LINES] == FIRST_LINES
            assert following.poll() is None, "it goes on as long as the container does"
            PlayedLogs.more.set()
            assert following.stdout.read().splitlines() == LATER_LINES
            assert following.wait(WATCH_SECONDS) == 0
        finally:
            following.kill()
    last = finetune("logs", "tuned", "--tail", "2")
    assert (last.returncode, last.stdout.splitlines()) == (0, FIRST_LINES)
    assert "tailLines=2" in PlayedLogs.asked[-1]
