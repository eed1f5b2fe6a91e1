"""Run a kube-apiserver and its etcd on the loopback for as long as a with block."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .binaries import Binaries, find

HOST = "127.0.0.1"
START_SECONDS = 120.0
LOG_TAIL_LINES = 30


class ApiServerError(RuntimeError):
    """The API server did not become ready; the message holds the logs' ends."""


@dataclass(frozen=True)
class ApiServer:
    """A running API server and what a client needs to be its administrator."""

    url: str
    token: str
    ca_file: Path
    kubeconfig: Path
    binaries: Binaries

    @classmethod
    @contextmanager
    def start(cls, binaries: Binaries | None = None) -> Iterator[ApiServer]:
        """Start both servers, wait until they are ready, and stop them at the end."""
        found = binaries or find()
        with ExitStack() as stack:
            name = stack.enter_context(TemporaryDirectory(prefix="testbed-"))
            folder = Path(name)
            port = stack.enter_context(_reserved_port())
            server = _described(folder, port, found)
            etcd = _Process("etcd", _etcd_command(folder, found), folder)
            stack.enter_context(etcd.running())
            command = _apiserver_command(folder, port, found)
            apiserver = _Process("kube-apiserver", command, folder)
            stack.enter_context(apiserver.running())
            _wait_until_ready(server, [etcd, apiserver])
            yield server

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, without the caller's own settings."""
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "KUBECACHEDIR": str(self.kubeconfig.parent / "kubectl-cache"),
            "KUBERC": "off",
        }
        return subprocess.run(
            [str(self.binaries.kubectl), *arguments],
            input=stdin or "",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


class _Process:
    """A server process with its log file."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self._command = command
        self._folder = folder
        self._log = folder / f"{name}.log"
        self._popen: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the process, and kill it at the end: nothing it holds is kept."""
        with self._log.open("wb") as log:
            # In a session of its own, an interrupt from the terminal does not
            # stop etcd before the API server that needs it.
            popen = subprocess.Popen(
                self._command,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._popen = popen
        with _killed_with_this_process(popen.pid):
            try:
                yield
            finally:
                popen.kill()
        popen.wait()

    def exit_status(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def log_tail(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


@contextmanager
def _killed_with_this_process(pid: int) -> Iterator[None]:
    """
    Have a shell kill the process should this one die without cleaning up.

    The shell reads from a pipe that this process alone can write to, so the
    read ends when this process does, however that happens.
    """
    script = 'read -r _; kill -9 "$1"'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", str(pid)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as guard:
        try:
            yield
        finally:
            guard.kill()


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Hold a free port that the API server can share, so that nobody else gets it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((HOST, 0))
        yield holder.getsockname()[1]


def _etcd_command(folder: Path, binaries: Binaries) -> list[str]:
    return [
        str(binaries.etcd),
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={_etcd_client_url(folder)}",
        # Required, but read by other members only, and it cannot be a socket.
        "--advertise-client-urls=http://localhost:2379",
        # A bare name: etcd ignores the path of this one, and it runs in the folder.
        "--listen-peer-urls=unix://etcd-peer.sock",
    ]


def _etcd_client_url(folder: Path) -> str:
    return f"unix://{folder}/etcd.sock"


def _apiserver_command(folder: Path, port: int, binaries: Binaries) -> list[str]:
    certificates = _certificate_folder(folder)
    # The server makes this key before it reads its service-account keys, and a
    # cluster that lives for minutes needs no second one.
    key = certificates / "apiserver.key"
    return [
        str(binaries.kube_apiserver),
        f"--etcd-servers={_etcd_client_url(folder)}",
        f"--bind-address={HOST}",
        f"--advertise-address={HOST}",
        f"--secure-port={port}",
        "--permit-port-sharing",
        f"--cert-dir={certificates}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC,Node",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        # A loopback address is no valid endpoint of the kubernetes service.
        "--endpoint-reconciler-type=none",
        "--allow-privileged",
    ]


def _certificate_folder(folder: Path) -> Path:
    return folder / "certificates"


def _described(folder: Path, port: int, binaries: Binaries) -> ApiServer:
    """Write the token file and the kubeconfig, and describe the server to be."""
    token = secrets.token_urlsafe(32)
    tokens = folder / "tokens.csv"
    tokens.write_text(f'{token},admin,admin,"system:masters"\n', encoding="utf-8")
    server = ApiServer(
        url=f"https://{HOST}:{port}",
        token=token,
        ca_file=_certificate_folder(folder) / "apiserver.crt",
        kubeconfig=folder / "kubeconfig",
        binaries=binaries,
    )
    # JSON is YAML, and the standard library writes it.
    server.kubeconfig.write_text(json.dumps(_kubeconfig(server)), encoding="utf-8")
    return server


def _kubeconfig(server: ApiServer) -> dict[str, object]:
    cluster = {"server": server.url, "certificate-authority": str(server.ca_file)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": server.token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "admin"}}],
        "current-context": "testbed",
    }


def _wait_until_ready(server: ApiServer, processes: list[_Process]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        for process in processes:
            if (status := process.exit_status()) is not None:
                raise _start_error(f"{process.name} ended with {status}", processes)
        problem = _problem(server)
        if problem is None:
            return
        if time.monotonic() > deadline:
            waited = f"not ready after {START_SECONDS:.0f} s"
            raise _start_error(f"{waited}: {problem}", processes)
        time.sleep(0.1)


def _problem(server: ApiServer) -> str | None:
    """Say why the server is not ready yet, or None when it is."""
    # The default namespace appears shortly after the server reports ready.
    for path in ("/readyz", "/api/v1/namespaces/default"):
        try:
            status, body = _get(server, path)
        except (OSError, http.client.HTTPException) as error:
            return f"{path}: {error!r}"
        if status != http.HTTPStatus.OK:
            return f"{path}: {status} {body}"
    return None


def _get(server: ApiServer, path: str) -> tuple[int, str]:
    # http.client, unlike urllib, does not send this through a proxy.
    context = ssl.create_default_context(cafile=server.ca_file)
    address = server.url.removeprefix("https://")
    connection = http.client.HTTPSConnection(address, timeout=10, context=context)
    with closing(connection):
        headers = {"Authorization": f"Bearer {server.token}"}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")


def _start_error(reason: str, processes: list[_Process]) -> ApiServerError:
    logs = [f"--- end of {p.name}'s log ---\n{p.log_tail()}" for p in processes]
    return ApiServerError("\n".join([reason, *logs]))
