"""Metrics over TLS: who may read them is the API server's word, and certificates are those that are on the disk now."""

from __future__ import annotations

import base64
import json
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from certificate_pairs import make_pair, needs_openssl
from finetune_operator.host.certificates import POLL_SECONDS
from finetune_operator.metrics.operator import CONTROLLER
from finetune_operator.plan.names import PROGRESS_CA_ANNOTATION
from operator_jobs import job
from testbed.client import eventually
from testbed.cluster import Cluster, Namespace
from testbed.operator_process import ACCOUNT, OperatorProcess, service_account_token
from testbed.processes import HOST
from testbed.prometheus import Prometheus, check_metrics
from testbed.proxy import Proxy

pytest_plugins = ["testbed.plugin"]
pytestmark = [pytest.mark.integration, pytest.mark.slow, needs_openssl]

Start = Callable[..., AbstractContextManager[OperatorProcess]]
SERVICE = "finetune-operator-metrics.finetune-system.svc"
READER, STRANGER = "prometheus", "default"
MARGIN_SECONDS = 15
BUDGET = 50


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates for the metrics Service: `first`, which ends after a day, and `second` after two."""
    root = tmp_path_factory.mktemp("certificates")
    for days, name in enumerate(("first", "second"), start=1):
        make_pair(root / name, f"IP:{HOST}", f"DNS:{SERVICE}", days=days)
    return root


class Secret:
    """A folder that a Secret is mounted in; its files change together, by a link that is replaced."""

    def __init__(self, folder: Path, pairs: Path) -> None:
        self.folder, self._pairs = folder, pairs
        self.put("first")
        for name in ("tls.crt", "tls.key"):
            (folder / name).symlink_to(Path("..data") / name)

    def put(self, certificate: str, key: str = "") -> None:
        version = self.folder / f"..{time.monotonic_ns()}"
        version.mkdir()
        shutil.copy(self._pairs / certificate / "tls.crt", version)
        shutil.copy(self._pairs / (key or certificate) / "tls.key", version)
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self.folder / "..data")

    def settings(self, *servers: str) -> dict[str, str]:
        files = {"certificate": "tls.crt", "key": "tls.key"}
        return {f"{server}_{kind}": str(self.folder / name) for server in servers for kind, name in files.items()}


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Secret:
    return Secret(tmp_path_factory.mktemp("secret"), pairs)


@pytest.fixture(scope="module")
def monitoring(cluster: Cluster) -> Namespace:
    """A namespace whose account `prometheus` is bound to the role of who may read metrics, and no other."""
    namespace = cluster.namespace()
    cluster.client.create(namespace.path("serviceaccounts"), {"metadata": {"name": READER}})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"{ACCOUNT}-metrics-reader"}
    subject = {"kind": "ServiceAccount", "name": READER, "namespace": namespace.name}
    binding = {"metadata": {"name": namespace.name}, "roleRef": role, "subjects": [subject]}
    cluster.client.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    return namespace


@pytest.fixture(scope="module")
def secured(cluster: Cluster, secret: Secret, monitoring: Namespace) -> Iterator[OperatorProcess]:
    """An operator that leads, and whose metrics and progress server have the Secret's certificate."""
    cluster.release_lease()
    operator = OperatorProcess(cluster.server, "secured", **secret.settings("metrics", "progress"))
    with operator.running(leading=False):
        token = token_of(cluster, monitoring)
        leads = f'leader_election_master_status{{name="{CONTROLLER}"}} 1.0'
        eventually(lambda: leads in scrape(operator, secret, token)[1], "it leads", 60)
        yield operator
        assert operator.terminate() == 0, operator.log()
        assert "Traceback" not in operator.log()


def token_of(cluster: Cluster, namespace: Namespace, account: str = READER, *arguments: str) -> str:
    return service_account_token(cluster.server, *arguments, account=account, namespace=namespace.name)


def scrape(operator: OperatorProcess, secret: Secret, token: str = "") -> tuple[int, str]:
    """What /metrics answers, verified by the certificate that is in the Secret."""
    return operator.scrape(token, secret.folder / "tls.crt")


def days_left(text: str) -> dict[str, float]:
    """Until each certificate ends, to the nearest tenth."""
    found = re.findall(r'^finetune_certificate_expiration_timestamp_seconds{certificate="(\w+)"} (.+)$', text, re.M)
    return {name: round((float(end) - time.time()) / 86400, 1) for name, end in found}


@pytest.mark.security(21)
@pytest.mark.security(21)
def test_who_may_read_gets_all_of_it_and_the_plain_port_has_none(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace
) -> None:
    status, text = scrape(secured, secret, token_of(cluster, monitoring))
    assert status == 200
    assert check_metrics(text) == ""
    assert "controller_runtime_reconcile_total" in text
    assert secured.metrics() == ""
    assert secured.health() == (200, "ok")


@pytest.mark.security(21)
@pytest.mark.security(21)
@pytest.mark.parametrize("kind", ["no token", "no JWT", "another audience", "expired"])
def test_without_a_valid_token_nothing_is_told(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace, kind: str
) -> None:
    tokens: dict[str, Callable[[], str]] = {
        "no token": lambda: "",
        "no JWT": lambda: "abc.def.ghi",
        "another audience": lambda: token_of(cluster, monitoring, READER, "--audience=finetune-operator.io/progress"),
        "expired": lambda: signed(cluster, token_of(cluster, monitoring), expires_in=-60),
    }
    assert scrape(secured, secret, tokens[kind]()) == (
        401,
        "a bearer token that is valid for the API server is needed\n",
    )


def signed(cluster: Cluster, token: str, expires_in: int) -> str:
    """The token with another end, signed by the key of the cluster."""

    def encoded(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    header, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    now = int(time.time())
    claims |= {"exp": now + expires_in, "iat": now - 3600, "nbf": now - 3600}
    content = f"{header}.{encoded(json.dumps(claims).encode())}"
    command = ["openssl", "dgst", "-sha256", "-sign", str(cluster.server.key_file)]
    signature = subprocess.run(command, input=content.encode(), check=True, capture_output=True).stdout
    return f"{content}.{encoded(signature)}"


def test_the_same_token_that_has_not_expired_is_taken(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace
) -> None:
    """Or the one that has would be refused for its signature."""
    assert scrape(secured, secret, signed(cluster, token_of(cluster, monitoring), expires_in=600))[0] == 200


@pytest.mark.security(21)
@pytest.mark.security(21)
def test_a_user_without_the_right_is_told_its_name_and_the_right(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace
) -> None:
    name = f"system:serviceaccount:{monitoring.name}:{STRANGER}"
    said = f"{name} may not get the nonResourceURL /metrics\n"
    assert scrape(secured, secret, token_of(cluster, monitoring, STRANGER)) == (403, said)


def test_a_token_is_reviewed_once_for_many_scrapes(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace
) -> None:
    token = token_of(cluster, monitoring)
    before = reviews(cluster, secured)
    assert [scrape(secured, secret, token)[0] for _ in range(10)] == [200] * 10
    assert reviews(cluster, secured) - before == 2


def reviews(cluster: Cluster, operator: OperatorProcess) -> int:
    """How many the API server was asked for, of tokens and of rights."""
    kinds = ("tokenreviews", "subjectaccessreviews")
    asked = [request for request in cluster.server.audit.requests() if request.resource in kinds]
    return len([request for request in asked if request.credential == operator.credential])


def test_a_real_prometheus_scrapes_with_its_accounts_token(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(token_of(cluster, monitoring))
    how = {
        "scheme": "https",
        "authorization": {"credentials_file": str(token)},
        "tls_config": {"ca_file": str(secret.folder / "tls.crt"), "server_name": SERVICE},
    }
    with Prometheus.scraping(secured.metrics_port, tmp_path, **how) as prometheus:
        leader = "sum(leader_election_master_status)"
        assert eventually(lambda: prometheus.value(leader), "a sample") == 1


@pytest.mark.security(21)
def test_without_the_api_server_nobody_can_be_judged(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace, start_operator: Start
) -> None:
    token = token_of(cluster, monitoring)
    with (
        Proxy(cluster.server).running() as proxy,
        start_operator("cut-off", leading=False, api_url=proxy.url, **secret.settings("metrics")) as operator,
    ):
        proxy.refuse(True)
        proxy.cut()
        assert scrape(operator, secret, token) == (503, "the token cannot be checked now\n")
        proxy.refuse(False)
        assert scrape(operator, secret, token)[0] == 200


def test_certificates_follow_the_secret_and_a_broken_pair_changes_nothing(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace, pairs: Path
) -> None:
    def served() -> set[str]:
        ports = (secured.metrics_port, secured.progress_port)
        return {ssl.get_server_certificate((HOST, port)) for port in ports}

    def pem(name: str) -> str:
        return (pairs / name / "tls.crt").read_text()

    def given_to_pods(name: str) -> str:
        monitoring.apply(job(), name)
        template = monitoring.child(name)["spec"]["template"]
        annotation: str = template["metadata"]["annotations"][PROGRESS_CA_ANNOTATION]
        return annotation

    def told() -> dict[str, float]:
        return days_left(scrape(secured, secret, token_of(cluster, monitoring))[1])

    assert (served(), given_to_pods("before")) == ({pem("first")}, pem("first"))
    assert told() == {"metrics": 1, "progress": 1}
    secret.put("second", key="first")
    broken = "the one before stays in use"
    eventually(lambda: broken in secured.log(), "a line about the pair", POLL_SECONDS + MARGIN_SECONDS)
    assert (served(), given_to_pods("between")) == ({pem("first")}, pem("first"))
    secret.put("second")
    eventually(lambda: served() == {pem("second")}, "the new certificate", POLL_SECONDS + MARGIN_SECONDS)
    assert given_to_pods("after") == pem("second")
    assert told() == {"metrics": 2, "progress": 2}
    assert secured.log().count(broken) == 2, "one line for each of the two servers"
    assert monitoring.child("before")["spec"]["template"]["metadata"]["annotations"][
        PROGRESS_CA_ANNOTATION
    ] == pem("first")  # fmt: skip


@pytest.mark.usefixtures("secured")
def test_a_replica_that_does_not_lead_tells_when_its_certificate_ends(pairs: Path, start_operator: Start) -> None:
    files = {"progress_certificate": f"{pairs}/first/tls.crt", "progress_key": f"{pairs}/first/tls.key"}
    with start_operator("follower", leading=False, **files) as follower:
        assert not follower.leads()
        assert days_left(follower.metrics()) == {"progress": 1}
        assert check_metrics(follower.metrics()) == ""


@pytest.mark.security(21)
def test_bad_tokens_of_one_address_do_not_reach_the_api_server_for_ever_and_harm_no_good_one(
    cluster: Cluster, secured: OperatorProcess, secret: Secret, monitoring: Namespace
) -> None:
    """The last one: it uses up what this address may try."""
    good = token_of(cluster, monitoring)
    assert scrape(secured, secret, good)[0] == 200
    before, started = reviews(cluster, secured), time.monotonic()
    codes = [scrape(secured, secret, f"junk-{number}")[0] for number in range(4 * BUDGET)]
    seconds = time.monotonic() - started
    assert set(codes) == {401, 429}
    assert codes.count(401) <= BUDGET + seconds + 1
    assert reviews(cluster, secured) - before <= codes.count(401) + 2 * (1 + seconds / 50)
    assert scrape(secured, secret, good)[0] == 200
