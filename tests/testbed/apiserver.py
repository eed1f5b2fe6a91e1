"""Run a kube-apiserver and its etcd on the loopback for as long as a with block."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from .audit import POLICY, AuditLog
from .binaries import Binaries, find
from .processes import HOST, ServerProcess, reserved_port

START_SECONDS = 120.0
AUDIT_LOG = "audit.log"
SERVICES = "10.96.0.0/16"
"""The addresses of Services."""


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
    process: ServerProcess | None = None

    @property
    def folder(self) -> Path:
        """Where the servers keep their files; it goes with them."""
        return self.kubeconfig.parent

    def objects(self) -> set[tuple[str, str, str]]:
        """Every object by namespace, kind and name, but Events, which stay for an hour. Raises AssertionError."""
        kinds = self.kubectl("api-resources", "--verbs=list", "--output=name")
        assert kinds.returncode == 0, kinds.stderr
        wanted = ",".join(kind for kind in kinds.stdout.split() if kind.partition(".")[0] != "events")
        line = '{.metadata.namespace}{"\\t"}{.kind}{"\\t"}{.metadata.name}{"\\n"}'
        listed = self.kubectl(
            "get",
            wanted,
            "--all-namespaces",
            f"--output=jsonpath={{range .items[*]}}{line}{{end}}",
            "--ignore-not-found",
        )
        assert listed.returncode == 0, listed.stderr
        rows = (row.split("\t") for row in listed.stdout.splitlines())
        return {(namespace, kind, name) for namespace, kind, name in rows}

    @property
    def address(self) -> str:
        """The address that the server listens on and that its certificate names."""
        return self.url.removeprefix("https://").rpartition(":")[0]

    @property
    def key_file(self) -> Path:
        """The private key of the server's certificate, and of service-account tokens."""
        return self.ca_file.with_suffix(".key")

    @property
    def audit(self) -> AuditLog:
        """What service accounts wrote."""
        return AuditLog(self.folder / AUDIT_LOG)

    @classmethod
    @contextmanager
    def start(
        cls,
        binaries: Binaries | None = None,
        *,
        address: str = HOST,
        users: Sequence[str] = (),
        flags: Sequence[str] = (),
    ) -> Iterator[ApiServer]:
        """Start both servers, wait until they are ready, and stop them at the end.

        The users are further lines of the token file.
        """
        found = binaries or find()
        with ExitStack() as stack:
            name = stack.enter_context(TemporaryDirectory(prefix="testbed-"))
            folder = Path(name)
            port = stack.enter_context(reserved_port(address))
            server = _described(folder, address, port, found, users)
            etcd = ServerProcess("etcd", _etcd_command(folder, found), folder)
            stack.enter_context(etcd.running())
            command = _apiserver_command(folder, address, port, found)
            apiserver = ServerProcess("kube-apiserver", [*command, *flags], folder)
            stack.enter_context(apiserver.running())
            _wait_until_ready(server, [etcd, apiserver])
            yield replace(server, process=apiserver)

    def restart(self) -> None:
        """Kill the API server and start it anew on the same etcd; returns when it is ready."""
        if self.process is None:
            raise RuntimeError("the API server was not started here")
        self.process.restart()
        _wait_until_ready(self, [self.process])

    def write_kubeconfig(self, path: Path, token: str, url: str = "") -> None:
        """Write a kubeconfig for whoever has that token, through another address when one is given."""
        path.write_text(json.dumps(_kubeconfig(self, token, url or self.url)), encoding="utf-8")

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


def _apiserver_command(folder: Path, address: str, port: int, binaries: Binaries) -> list[str]:
    certificates = _certificate_folder(folder)
    # The server makes this key before it reads its service-account keys, and a
    # cluster that lives for minutes needs no second one.
    key = certificates / "apiserver.key"
    return [
        str(binaries.kube_apiserver),
        f"--etcd-servers={_etcd_client_url(folder)}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={port}",
        "--permit-port-sharing",
        f"--cert-dir={certificates}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC,Node",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        f"--service-cluster-ip-range={SERVICES}",
        # A loopback address is no valid endpoint of the kubernetes service.
        "--endpoint-reconciler-type=none",
        "--allow-privileged",
        # As on OpenShift: an owner reference that blocks deletion needs a right of its own.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        f"--audit-policy-file={folder / 'audit-policy.yaml'}",
        f"--audit-log-path={folder / AUDIT_LOG}",
    ]


def _certificate_folder(folder: Path) -> Path:
    return folder / "certificates"


def _described(folder: Path, address: str, port: int, binaries: Binaries, users: Sequence[str]) -> ApiServer:
    """Write the token file and the kubeconfig, and describe the server to be."""
    token = secrets.token_urlsafe(32)
    tokens = folder / "tokens.csv"
    lines = [f'{token},admin,admin,"system:masters"', *users]
    tokens.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    server = ApiServer(
        url=f"https://{address}:{port}",
        token=token,
        ca_file=_certificate_folder(folder) / "apiserver.crt",
        kubeconfig=folder / "kubeconfig",
        binaries=binaries,
    )
    # JSON is YAML, and the standard library writes it.
    server.write_kubeconfig(server.kubeconfig, token)
    (folder / "audit-policy.yaml").write_text(json.dumps(POLICY), encoding="utf-8")
    return server


def _kubeconfig(server: ApiServer, token: str, url: str) -> dict[str, object]:
    cluster = {"server": url, "certificate-authority": str(server.ca_file)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "testbed", "cluster": cluster}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": "user"}}],
        "current-context": "testbed",
    }


def _wait_until_ready(server: ApiServer, processes: list[ServerProcess]) -> None:
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


def _start_error(reason: str, processes: list[ServerProcess]) -> ApiServerError:
    logs = [f"--- end of {p.name}'s log ---\n{p.log_tail()}" for p in processes]
    return ApiServerError("\n".join([reason, *logs]))
