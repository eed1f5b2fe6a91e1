"""Renders the chart and the kustomizations into plain objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "helm" / "finetune-operator"
MANIFESTS = ROOT / "manifests"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
KUBERNETES = "1.36.0"
_FIELD_VALUES = {"metadata.name": "pod-1", "metadata.namespace": "finetune-system", "status.podIP": "10.0.0.7"}


class RenderingError(RuntimeError):
    """What a program said when it refused."""


@dataclass(frozen=True)
class Chart:
    """The chart, and the helm to render it with."""

    helm: Path

    def render(
        self, values: Mapping[str, Any] | None = None, *, release: str = RELEASE, namespace: str = NAMESPACE
    ) -> list[Object]:
        """The objects of `helm template`. Raises RenderingError."""
        return objects(_rendered(self, json.dumps(values or {}), release, namespace))

    def run(self, *arguments: str, stdin: str = "", kubeconfig: Path | None = None) -> str:
        """What helm printed. Raises RenderingError."""
        # Without the settings of whoever runs the tests.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HELM_", "KUBE"))}
        environment["KUBECONFIG"] = str(kubeconfig or os.devnull)
        return _run([str(self.helm), *arguments], stdin, environment)


@cache
def _rendered(chart: Chart, values: str, release: str, namespace: str) -> str:
    options = (f"--namespace={namespace}", f"--kube-version={KUBERNETES}", "--values=-")
    return chart.run("template", release, str(FOLDER), *options, stdin=values)


def kustomize(folder: str, kubectl: str = "kubectl") -> list[Object]:
    """The objects of a folder under manifests/."""
    return objects(_run([kubectl, "kustomize", str(MANIFESTS / folder)]))


def find_kubectl() -> str | None:
    """A kubectl that is installed."""
    return shutil.which("kubectl")


def objects(text: str) -> list[Object]:
    """The objects of a YAML stream."""
    # The CRD alone takes the loader in Python a second.
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def of_kind(found: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [each for each in found if each["kind"] == kind]


def one(found: list[Object], kind: str, name: str = "") -> Object:
    """The only object of that kind, and of that name when one is given."""
    matching = [each for each in of_kind(found, kind) if name in ("", each["metadata"]["name"])]
    assert len(matching) == 1, [each["metadata"]["name"] for each in matching]
    return matching[0]


def container(found: list[Object]) -> Object:
    """The operator's only container."""
    only: list[Object] = one(found, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert len(only) == 1
    return only[0]


def environment(found: list[Object]) -> dict[str, str]:
    """What the process finds in its environment, with what the kubelet fills in."""

    def value(entry: Object) -> str:
        return entry["value"] if "value" in entry else _FIELD_VALUES[entry["valueFrom"]["fieldRef"]["fieldPath"]]

    return {entry["name"]: value(entry) for entry in container(found)["env"]}


def _run(command: list[str], stdin: str = "", environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderingError(done.stdout + done.stderr)
    return done.stdout
