"""Run kube-controller-manager and kube-scheduler beside an API server: Jobs make pods, and what is orphaned goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .apiserver import ApiServer, ApiServerError
from .client import Client
from .processes import ServerProcess

START_SECONDS = 60.0


@contextmanager
def controllers(server: ApiServer, *, real_nodes: bool = False, own_accounts: bool = False) -> Iterator[None]:
    """Start both and wait until they work; stop them at the end.

    A node that no kubelet reports for would be declared dead, so nodes are watched only where they are real.
    With accounts of their own, as in most clusters, what a controller does is not the administrator's doing.

    CRDs should be there before: the garbage collector looks for new kinds every
    half minute only.
    """
    manager = ServerProcess(
        "kube-controller-manager", _manager_command(server, real_nodes, own_accounts), server.folder
    )
    scheduler = ServerProcess("kube-scheduler", _scheduler_command(server), server.folder)
    with ExitStack() as stack:
        for process in (manager, scheduler):
            stack.enter_context(process.running())
        _wait_until_working(server, [manager, scheduler])
        yield


def _manager_command(server: ApiServer, real_nodes: bool, own_accounts: bool) -> list[str]:
    return [
        str(server.binaries.folder / "kube-controller-manager"),
        f"--kubeconfig={server.kubeconfig}",
        "--leader-elect=false",
        "--secure-port=0",
        f"--service-account-private-key-file={server.key_file}",
        f"--root-ca-file={server.ca_file}",
        f"--controllers={'*' if real_nodes else '*,-node-lifecycle-controller'}",
        f"--use-service-account-credentials={str(own_accounts).lower()}",
        "--concurrent-gc-syncs=5",
    ]


def _scheduler_command(server: ApiServer) -> list[str]:
    return [
        str(server.binaries.folder / "kube-scheduler"),
        f"--kubeconfig={server.kubeconfig}",
        "--leader-elect=false",
        "--secure-port=0",
    ]


def _wait_until_working(server: ApiServer, processes: list[ServerProcess]) -> None:
    """Pods are refused until the namespace's service account is there, which the manager makes."""
    client = Client(server)
    deadline = time.monotonic() + START_SECONDS
    while client.find("/api/v1/namespaces/default/serviceaccounts/default") is None:
        for process in processes:
            if process.exit_status() is not None or time.monotonic() > deadline:
                raise ApiServerError(f"{process.name} does not work:\n{process.log_tail()}")
        time.sleep(0.1)
