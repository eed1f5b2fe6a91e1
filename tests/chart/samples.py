"""The samples of manifests/samples in a namespace, on volumes with a few rows of the data that they name."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from chart.rendering import MANIFESTS
from e2e.jobs import ASSETS, END_SECONDS, TRAINER_USER
from finetune_trainer import storage
from testbed.client import eventually
from testbed.cluster import Namespace
from testbed.node import NodeCluster

APPROACHES = ("sentiment-full", "sentiment-adapter", "sentiment-prompt", "distillation-student")
"""One for each way of tuning."""
TEACHER = "distillation-teacher"
_DATA = ("tweets", "trec")
_ROWS = {"train": 64, "evaluation": 32}


def few_rows(folder: Path) -> None:
    """What the samples learn from: their model, and their data cut to its first rows."""
    shutil.copytree(ASSETS / "models" / "minilm", folder / "models" / "minilm")
    for data in _DATA:
        (folder / "data" / data).mkdir(parents=True)
        for file, rows in _ROWS.items():
            name = f"data/{data}/{file}.jsonl"
            lines = (ASSETS / name).read_text(encoding="utf-8").splitlines(keepends=True)
            (folder / name).write_text("".join(lines[:rows]), encoding="utf-8")


@dataclass(frozen=True)
class Samples:
    """A namespace with the claims that the samples name."""

    cluster: NodeCluster
    namespace: Namespace
    models: Path

    @classmethod
    def make(cls, cluster: NodeCluster, name: str, folder: Path) -> Samples:
        """Make it. The samples' data is cut to its first rows, their model is whole."""
        made = cls(cluster, cluster.namespace(name), folder / "models")
        made.models.mkdir()
        # A folder of the host is not given to the pod's group, as other volumes are.
        os.chown(made.models, TRAINER_USER, TRAINER_USER)
        few_rows(folder / "examples")
        made.namespace.volume("examples", folder=str(folder / "examples"))
        made.namespace.volume("models", folder=str(made.models))
        return made

    def apply(self, *names: str) -> None:
        """`kubectl apply` of the files as they are."""
        files = [f"--filename={MANIFESTS / 'samples' / name}.yaml" for name in names]
        done = self.cluster.server.kubectl(f"--namespace={self.namespace.name}", "apply", *files)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", "no warning of Pod Security or of the CRD"

    def complete(self, name: str) -> None:
        """Wait until a sample is Complete, and hold its model against what the status says of it."""
        eventually(lambda: self._is_complete(name), f"{name} is Complete", END_SECONDS)
        result = self.namespace.job(name)["status"]["result"]
        assert result["uri"] == f"pvc://models/{name}"
        exported = self.models / name
        storage.check_directory(exported)
        assert storage.digest(exported) == result["digest"]
        assert list(exported.glob("**/*.safetensors"))

    def _is_complete(self, name: str) -> bool:
        failed = self.namespace.condition(name, "Failed")
        assert failed.get("status") != "True", failed
        return self.namespace.condition(name, "Complete").get("status") == "True"

    def first_step(self) -> datetime:
        """When the first step of any sample was done, by the trainers' own records on the volume."""
        events = [
            json.loads(line)
            for path in self.models.glob(".finetune/*/progress.jsonl")
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        steps = [event for event in events if event.get("progress", {}).get("step", 0) > 0]
        return min(datetime.fromisoformat(event["time"]) for event in steps)
