"""The kustomizations on a real API server, by the commands of docs/installing.md: installed, uninstalled and purged."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chart.documented import script, typed
from chart.foreign_kinds import crd_name, foreign_crd
from chart.rendering import MANIFESTS, Object, kustomize, one
from contract_cases import valid_job
from testbed.apiserver import ApiServer
from testbed.binaries import Binaries
from testbed.client import eventually
from testbed.controllers import controllers

pytestmark = pytest.mark.integration

DOCUMENT = "installing.md"
JOBS_NAMESPACE = {"base": "default", "overlays/monitoring": "default", "overlays/namespaced": "finetune-jobs"}
MONITORING = ("ServiceMonitor", "PrometheusRule")
OWN_OF_NAMESPACES = {"ConfigMap kube-root-ca.crt", "ServiceAccount default"}
SECONDS = 60.0


@pytest.fixture(scope="module")
def server(control_plane: Binaries) -> Iterator[ApiServer]:
    """An API server with controllers and the kinds of the Prometheus Operator, and nothing of ours."""
    with ApiServer.start(control_plane) as started:
        crds = {"apiVersion": "v1", "kind": "List", "items": [foreign_crd(kind) for kind in MONITORING]}
        done = started.kubectl("apply", "--filename=-", stdin=json.dumps(crds))
        assert done.returncode == 0, done.stderr
        for kind in MONITORING:
            eventually(lambda kind=kind: started.kubectl("get", crd_name(kind)).returncode == 0, kind)  # type: ignore[misc]
        with controllers(started):
            yield started


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder to type the commands in."""
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    return tmp_path


def documented(heading: str, folder: str) -> str:
    """The commands of a section for a folder that was chosen, without Helm's."""
    lines = script(DOCUMENT, heading).replace("manifests/base", f"manifests/{folder}").splitlines()
    return "\n".join(line for line in lines if not line.startswith("helm "))


def everything(server: ApiServer) -> set[str]:
    """Every object that there is."""
    return {f"{namespace}:{kind} {name}" for namespace, kind, name in server.objects()}


def only(server: ApiServer, before: set[str], wanted: set[str]) -> None:
    """Wait until nothing else has come since."""
    with suppress(AssertionError):  # the next line tells what is left
        eventually(lambda: everything(server) - before == wanted, "only that", SECONDS)
    assert everything(server) - before == wanted


def job(name: str, namespace: str) -> Object:
    manifest: Object = valid_job("minimal")
    return {**manifest, "metadata": {"name": name, "namespace": namespace}}


def names_of(certificate: Path) -> set[str]:
    """The DNS names that a certificate is for."""
    command = ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", str(certificate)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"DNS:([^\s,]+)", shown))


def test_the_certificate_names_what_is_asked_for(server: ApiServer, tmp_path: Path) -> None:
    lines = script(DOCUMENT, "With kustomize")
    certificate_alone = re.sub(r"^kubectl (?:.*\\\n)*.*\n", "", lines, flags=re.MULTILINE)
    typed(certificate_alone.replace("=finetune-system", "=ml-platform"), server, tmp_path)
    names = names_of(tmp_path / "tls.crt")
    assert "finetune-operator-progress.ml-platform.svc" in names
    kubectl = str(server.binaries.kubectl)
    monitor = one(kustomize("overlays/monitoring", kubectl), "ServiceMonitor")
    assert {endpoint["tlsConfig"]["serverName"] for endpoint in monitor["spec"]["endpoints"]} <= names


@pytest.mark.parametrize("folder", JOBS_NAMESPACE)
def test_life_of_a_kustomization(server: ApiServer, checkout: Path, folder: str) -> None:
    """What is documented to stay stays, and after the purge there is nothing but the users' namespace."""
    before, namespace = everything(server), JOBS_NAMESPACE[folder]
    typed(documented("With kustomize", folder), server, checkout)
    done = server.kubectl("apply", "--filename=-", stdin=json.dumps(job("tuned", namespace)))
    assert done.returncode == 0, done.stderr
    assert "finetune-system:Deployment finetune-operator" in everything(server)

    typed(documented("Uninstalling", folder), server, checkout)
    users = {f"{namespace}:FineTuneJob tuned"}
    if namespace != "default":
        users |= {f":Namespace {namespace}"} | {f"{namespace}:{each}" for each in OWN_OF_NAMESPACES}
    crd = {
        ":CustomResourceDefinition finetunejobs.finetune-operator.io",
        ":APIService v1alpha1.finetune-operator.io",
    }
    home = {f"finetune-system:{each}" for each in OWN_OF_NAMESPACES | {"Secret finetune-operator-tls"}}
    only(server, before, {*users, *home, *crd, ":Namespace finetune-system"})

    typed(documented("Purging", folder), server, checkout)
    only(server, before, users - {f"{namespace}:FineTuneJob tuned"})
    if namespace != "default":
        assert server.kubectl("delete", "namespace", namespace).returncode == 0
