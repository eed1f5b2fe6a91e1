"""The watches reach the API server by the address that a pod is told: the cluster's DNS may be down."""

from __future__ import annotations

import kopf
import pytest

from finetune_operator.host.watches import _by_address

NAMED = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="secret", priority=1)  # noqa: S106 - nobody's


@pytest.mark.parametrize(
    ("host", "port", "server"),
    [
        ("10.96.0.1", "443", "https://10.96.0.1:443"),
        ("fd00::1", "6443", "https://[fd00::1]:6443"),
        ("api.example.com", "443", "https://api.example.com:443"),
    ],
)
def test_the_address_of_the_environment_is_taken(
    monkeypatch: pytest.MonkeyPatch, host: str, port: str, server: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    taken = _by_address(NAMED)
    assert taken.server == server
    assert (taken.token, taken.priority) == (NAMED.token, NAMED.priority)


def test_without_one_the_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert _by_address(NAMED) == NAMED
