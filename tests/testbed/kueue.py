"""Build Kueue, and run it beside an API server: the release's own manifests, webhooks and configuration."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .apiserver import ApiServer
from .client import Client, Object, eventually
from .go_build import BinariesUnavailableError, Recipe, build_once, required_version
from .processes import HOST, ServerProcess, free_port

MODULE = Path(__file__).parent / "kueue"
NAME = "sigs.k8s.io/kueue"
START_SECONDS = 60.0
_NAMESPACE = "kueue-system"
_SERVICE = "kueue-webhook-service"
_SECRET = "kueue-webhook-server-cert"  # the name of one
_WITHOUT_GO = "no Kueue: install Go so that it can be built"
_WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
# The manager is a process here, not a Deployment with a Service and rights of its own.
_INSTALLED = ("Namespace", "CustomResourceDefinition", "Secret", *_WEBHOOKS)


class KueueError(RuntimeError):
    """Kueue did not start; the message holds its log's end."""


@dataclass(frozen=True)
class Kueue:
    """The program, and the release that it was built from."""

    program: Path
    release: Path
    """The folder of its Go module, with what its maintainers install."""

    @contextmanager
    def running(self, server: ApiServer) -> Iterator[None]:
        """Install it and run its manager as the administrator until the end of the with block.

        With its webhooks: they are what sets defaults, and what may refuse a Job of the operator's.
        """
        folder = server.folder / "kueue"
        folder.mkdir()
        webhooks, health = free_port(), free_port()
        secret = _make_certificate(folder)
        _install(server, self.release, f"https://{HOST}:{webhooks}", secret)
        configuration = folder / "configuration.json"
        configuration.write_text(json.dumps(_configuration(self.release, folder, webhooks, health)), encoding="utf-8")
        command = [str(self.program), f"--config={configuration}"]
        process = ServerProcess("kueue", command, folder, {**os.environ, "KUBECONFIG": str(server.kubeconfig)})
        with process.running():
            _wait_until_ready(process, health)
            yield


def find_kueue() -> Kueue:
    """Kueue, built once. Raises BinariesUnavailableError, BuildFailedError."""
    version = required_version(MODULE, NAME)
    flags = f"-s -w -X {NAME}/pkg/version.GitVersion={version}"
    recipe = Recipe(f"Kueue {version}", MODULE, f"{NAME}/cmd/kueue", "kueue", flags)
    program = build_once(recipe, f"kueue-{recipe.source_hash()}", _WITHOUT_GO) / recipe.program
    return Kueue(program, _release())


def _release() -> Path:
    """The module's folder. The build has downloaded it, but its cache may have been emptied since."""
    go = shutil.which("go")
    if go is None:
        raise BinariesUnavailableError(_WITHOUT_GO)
    command = [go, "mod", "download", "-json", NAME]
    environment = {**os.environ, "GOWORK": "off"}
    done = subprocess.run(command, cwd=MODULE, env=environment, capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout)["Dir"])


def _make_certificate(folder: Path) -> Object:
    """The webhooks' certificate, where the kubelet would mount it; returns the data of its Secret.

    It is its own authority. Kueue keeps one that names its service, and has the API server trust it; what it would
    make itself does not name the address that the API server reaches a process at.
    """
    certificate, key, authority_key = folder / "tls.crt", folder / "tls.key", folder / "ca.key"
    names = f"subjectAltName=DNS:kueue-ca,DNS:{_SERVICE}.{_NAMESPACE}.svc,IP:{HOST}"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/CN=kueue-ca"]
    subprocess.run([*make, "-addext", names, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    # Kueue reads an authority's key in the older format alone.
    convert = ["openssl", "pkey", "-traditional", "-in", key, "-out", authority_key]
    subprocess.run(convert, check=True, capture_output=True)
    files = {"ca.crt": certificate, "ca.key": authority_key, "tls.crt": certificate, "tls.key": key}
    return {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}


def _install(server: ApiServer, release: Path, webhooks: str, secret: Object) -> None:
    """What `kubectl apply` of the release installs, but for what runs its manager in a pod."""
    rendered = _kubectl(server, "kustomize", str(release / "config" / "default"))
    objects = [o for o in yaml.load_all(rendered, yaml.CSafeLoader) if o["kind"] in _INSTALLED]
    for body in objects:
        if body["kind"] == "Secret":
            body["data"] = secret
        for configuration in _webhook_clients(body):
            configuration["url"] = webhooks + configuration.pop("service").get("path", "/")
    _kubectl(server, "create", "--filename=-", stdin="\n---\n".join(map(json.dumps, objects)))
    client = Client(server)
    crds = [o["metadata"]["name"] for o in objects if o["kind"] == "CustomResourceDefinition"]
    eventually(lambda: all(_is_established(client, name) for name in crds), "Kueue's CRDs are established")


def _is_established(client: Client, name: str) -> bool:
    crd = client.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    conditions = crd.get("status", {}).get("conditions") or ()
    return any(entry["type"] == "Established" and entry["status"] == "True" for entry in conditions)


def _webhook_clients(body: Object) -> Iterator[Object]:
    """How the API server reaches the webhooks of an object."""
    if body["kind"] in _WEBHOOKS:
        yield from (webhook["clientConfig"] for webhook in body["webhooks"])
    elif (conversion := body.get("spec", {}).get("conversion", {})).get("strategy") == "Webhook":
        yield conversion["webhook"]["clientConfig"]


def _configuration(release: Path, folder: Path, webhooks: int, health: int) -> dict[str, Any]:
    """The release's own, with addresses of this machine."""
    path = release / "config" / "components" / "manager" / "controller_manager_config.yaml"
    configuration: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return configuration | {
        "health": {"healthProbeBindAddress": f"{HOST}:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": HOST, "port": webhooks, "certDir": str(folder)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": True, "webhookServiceName": _SERVICE, "webhookSecretName": _SECRET},
        "featureGates": {"VisibilityOnDemand": False},  # an API server of its own, which nobody asks here
    }


def _wait_until_ready(process: ServerProcess, port: int) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_ready() -> bool:
        if process.exit_status() is not None:
            raise KueueError(process.log_tail())
        try:
            with opener.open(f"http://{HOST}:{port}/readyz", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    try:
        eventually(is_ready, "Kueue is ready", START_SECONDS)
    except AssertionError as error:
        raise KueueError(f"{error}:\n{process.log_tail()}") from None


def _kubectl(server: ApiServer, *arguments: str, stdin: str | None = None) -> str:
    done = server.kubectl(*arguments, stdin=stdin)
    if done.returncode:
        raise KueueError(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout
