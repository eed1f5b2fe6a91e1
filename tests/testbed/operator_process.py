"""The operator as a process of its own, with the ServiceAccount and the RBAC it ships with, never as admin."""

from __future__ import annotations

import http.client
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .apiserver import ApiServer
from .audit import credential_of
from .client import Client, eventually
from .processes import HOST, ServerProcess, free_port

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "manifests" / "crds"
RBAC = ROOT / "manifests" / "rbac"
NAMESPACE = "finetune-system"
ACCOUNT = "finetune-operator"
START_SECONDS = 60.0
_CRD = "finetunejobs.finetune-operator.io"


class OperatorError(RuntimeError):
    """The operator did not start or end as it should; the message holds its log's end."""


def install_crd(server: ApiServer) -> None:
    """The CRD; returns when the API server serves it."""
    _kubectl(server, "apply", f"--filename={CRDS}")
    client = Client(server)

    def is_established() -> bool:
        # Not `kubectl wait`: it fails while there are no conditions at all.
        status = client.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{_CRD}").get("status", {})
        true = {entry["type"] for entry in status.get("conditions") or () if entry["status"] == "True"}
        return "Established" in true

    eventually(is_established, "the CRD is established", START_SECONDS)


def install(server: ApiServer) -> None:
    """What a cluster needs before the operator can run: the CRD, its namespace and its RBAC."""
    install_crd(server)
    _kubectl(server, "create", "namespace", NAMESPACE)
    _kubectl(server, "apply", f"--filename={RBAC}")


def _kubectl(server: ApiServer, *arguments: str) -> None:
    done = server.kubectl(*arguments)
    if done.returncode:
        raise OperatorError(f"kubectl {' '.join(arguments)}: {done.stderr}")


class OperatorProcess:
    """One replica: its token, its port, its process."""

    def __init__(
        self, server: ApiServer, identity: str, *, account: str = ACCOUNT, api_url: str = "", **settings: str | int
    ) -> None:
        self.server = server
        self.identity = identity
        self.token = service_account_token(server, account=account)
        self.credential = credential_of(self.token)
        self.port = free_port()
        self.progress_port = free_port()
        self.metrics_port = free_port()
        kubeconfig = server.folder / f"{identity}.kubeconfig"
        server.write_kubeconfig(kubeconfig, self.token, api_url)
        self._process = ServerProcess(
            identity,
            [sys.executable, "-m", "finetune_operator"],
            server.folder,
            self._environment(kubeconfig, settings),
        )

    def _environment(self, kubeconfig: Path, settings: dict[str, str | int]) -> dict[str, str]:
        own = {
            "trainer_image": "trainer:test",
            "http_port": self.port,
            "operator_namespace": NAMESPACE,
            "identity": self.identity,
            "progress_port": self.progress_port,
            "metrics_port": self.metrics_port,
            "progress_url": f"https://{self.server.address}:{self.progress_port}",
            # The API server's certificate is one for this address, which is all that matters here.
            "progress_certificate": self.server.ca_file,
            "progress_key": self.server.key_file,
            **settings,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FINETUNE_")}
        ours = {f"FINETUNE_{name.upper()}": str(value) for name, value in own.items()}
        return {**kept, **ours, "KUBECONFIG": str(kubeconfig)}

    @contextmanager
    def running(self, *, leading: bool = True) -> Iterator[OperatorProcess]:
        """Start it and wait until it leads (or only serves); kill it at the end."""
        with self._process.running():
            self.wait_until(self.leads if leading else self.serves)
            yield self

    def wait_until(self, holds: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Wait until a method of this object returns true."""
        if not self._process.comes_to(holds, seconds):
            raise OperatorError(f"{self.identity}:\n{self._process.log_tail()}")

    def leads(self) -> bool:
        """Whether it holds the lease and has its first list."""
        return self.metric("leader_election_master_status") == 1 and bool(
            self.metric("controller_runtime_max_concurrent_reconciles")
        )

    def serves(self) -> bool:
        """Whether it answers probes."""
        try:
            return self.health()[0] == http.HTTPStatus.OK
        except OSError:
            return False

    def metrics(self, accept: str = "text/plain") -> str:
        """What /metrics says now; empty when it does not answer."""
        request = urllib.request.Request(f"http://{HOST}:{self.port}/metrics", headers={"Accept": accept})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=5) as response:
                text: str = response.read().decode()
        except (urllib.error.URLError, OSError):
            return ""
        return text

    def scrape(self, token: str = "", ca_file: Path | None = None) -> tuple[int, str]:
        """What /metrics answers where it has a certificate, which is the API server's unless another is told."""
        tls = ssl.create_default_context(cafile=ca_file or self.server.ca_file)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection = http.client.HTTPSConnection(self.server.address, self.metrics_port, timeout=10, context=tls)
        with closing(connection):
            connection.request("GET", "/metrics", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels; 0 when there is none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = (line.rsplit(" ", 1) for line in self.metrics().splitlines() if not line.startswith("#"))
        found = ((series, value) for series, value in lines if series.partition("{")[0] == name)
        return sum(float(value) for series, value in found if all(label in series for label in wanted))

    def health(self, path: str = "/healthz") -> tuple[int, str]:
        """What a probe is told: the status and the reason."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{HOST}:{self.port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def report(self, path: str, body: bytes, token: str) -> int:
        """Send a progress report as a trainer does; returns the answer's status."""
        return self.report_answer(path, body, token)[0]

    def report_answer(self, path: str, body: bytes, token: str) -> tuple[int, str]:
        """Send a progress report as a trainer does; returns the answer's status and text."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"https://{self.server.address}:{self.progress_port}{path}"
        request = urllib.request.Request(url, body, headers)
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=self.server.ca_file))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), tls)
        try:
            with opener.open(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """Everything it has said."""
        return self._process.log()

    def kill(self) -> None:
        """SIGKILL: nothing is released or finished."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def freeze(self) -> None:
        """SIGSTOP: it holds everything and does nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for its end; returns the exit code. Raises OperatorError."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise OperatorError(f"{self.identity} goes on after {seconds:.0f} s:\n{self._process.log_tail()}") from None


def service_account_token(
    server: ApiServer, *arguments: str, account: str = ACCOUNT, namespace: str = NAMESPACE
) -> str:
    """A token of a ServiceAccount, the operator's by default."""
    made = server.kubectl("create", "token", account, f"--namespace={namespace}", *arguments)
    if made.returncode:
        raise OperatorError(made.stderr)
    return made.stdout.strip()
