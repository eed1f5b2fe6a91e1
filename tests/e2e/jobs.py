"""A namespace with volumes on a real node, small jobs in it, and what the tests ask about them."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.client import Object, eventually
from testbed.cluster import Namespace
from testbed.node import NodeCluster
from testbed.operator_process import OperatorProcess

ASSETS = Path(__file__).resolve().parents[2] / "build" / "assets"
TRAINER_USER = 65532
TRAIN_ROWS, EVALUATION_ROWS = 256, 64
START_SECONDS = 120.0
"""A pod imports PyTorch and transformers first, on a machine that others use too."""
END_SECONDS = 420.0


@dataclass(frozen=True)
class Team:
    """One namespace: claims for the model, the data and the output, on folders of this machine."""

    cluster: NodeCluster
    namespace: Namespace
    data: Path
    models: Path

    @classmethod
    def make(cls, cluster: NodeCluster, name: str, folder: Path, assets: Path, tiny: Path) -> Team:
        """Make it, with a few hundred rows to train on, and a secret that a job takes its number of threads from."""
        made = cls(cluster, cluster.namespace(name), folder / "data", folder / "models")
        made.data.mkdir()
        made.models.mkdir()
        # A folder of the host is not given to the pod's group, as other volumes are.
        os.chown(made.models, TRAINER_USER, TRAINER_USER)
        for file, rows in (("train", TRAIN_ROWS), ("evaluation", EVALUATION_ROWS)):
            lines = (assets / "data" / "tweets" / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
            made.write_rows(f"{file}.jsonl", lines[:rows])
        folders = {"base-models": assets / "models", "data": made.data, "models": made.models, "tiny-models": tiny}
        for claim, source in folders.items():
            made.namespace.volume(claim, folder=str(source))
        return made

    def write_rows(self, file: str, lines: list[str]) -> None:
        """Put a file on the data volume."""
        (self.data / file).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def apply(self, name: str, **spec: Any) -> str:
        """`kubectl apply` of a small job, with some fields of its spec given otherwise; returns its UID."""
        manifest = {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name, "namespace": self.namespace.name},
            "spec": {
                "task": "TextClassification",
                "model": {"uri": "pvc://tiny-models/bert"},
                "data": {
                    "train": {"uri": "pvc://data/train.jsonl"},
                    "evaluation": {"uri": "pvc://data/evaluation.jsonl"},
                    "maxLength": 24,
                },
                "strategy": {"adapter": {"type": "Bottleneck"}},
                "training": {"maxSteps": 100, "batchSize": 8},
                "resources": {"gpusPerNode": 0, "cpu": "1", "memory": "4Gi"},
                "output": {"uri": f"pvc://models/{name}"},
                **spec,
            },
        }
        self.kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
        uid: str = self.namespace.job(name)["metadata"]["uid"]
        return uid

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace; returns what it printed."""
        done = self.cluster.server.kubectl(f"--namespace={self.namespace.name}", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def metric(self, operator: OperatorProcess, job: str, name: str) -> float | None:
        """A job's value in the operator's metrics; None when it has none."""
        series = f'{name}{{name="{job}",namespace="{self.namespace.name}"}}'
        lines = (line.rsplit(" ", 1) for line in operator.metrics().splitlines() if not line.startswith("#"))
        return next((float(value) for found, value in lines if found == series), None)

    def wait_for_step(self, operator: OperatorProcess, job: str, step: int) -> None:
        """Wait until the operator's metrics say that a job has done so many steps."""

        def look() -> bool:
            failed = self.namespace.condition(job, "Failed")
            assert failed.get("status") != "True", failed
            return (self.metric(operator, job, "finetune_job_steps_done") or 0) >= step

        eventually(look, f"step {step} of {job}", START_SECONDS)

    def checkpoints(self, uid: str) -> list[int]:
        """The steps at which a job's checkpoints on the volume were saved."""
        found = (self.models / ".finetune" / uid / "checkpoints").glob("*/step-*")
        return sorted(int(path.name.removeprefix("step-")) for path in found)

    def events(self, uid: str) -> list[Object]:
        """What the trainers of a job have recorded on the volume, over all of its pods."""
        text = (self.models / ".finetune" / uid / "progress.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def notes(self, uid: str) -> list[str]:
        """The sentences among these."""
        return [event["text"] for event in self.events(uid) if event["event"] == "note"]

    def suspend(self, name: str, suspended: bool) -> None:
        """Suspend a job, or let it go on."""
        change = json.dumps({"spec": {"suspend": suspended}})
        self.kubectl("patch", f"ftj/{name}", "--type=merge", f"--patch={change}")

    def until_empty(self) -> None:
        """Wait until nothing is left of any job, and no trainer is on the node."""
        empty = lambda: not self.kubectl("get", "pods,jobs,services,ftj", "--output=name").strip()  # noqa: E731
        eventually(empty, "the namespace is empty", START_SECONDS)
        assert not self.cluster.slot.container_processes()

    def kill_trainer(self, pod: Object) -> None:
        """Kill a pod's trainer, without a word, as a kernel that is out of memory does."""
        pids = self.cluster.slot.container_processes(pod["metadata"]["uid"])
        trainers = [
            pid for pid in pids if "finetune_trainer" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
        ]
        assert trainers
        for pid in trainers:
            os.kill(pid, signal.SIGKILL)

    def delete(self) -> None:
        """Delete the jobs, wait until the last pod has left the node, and leave the rest to the namespace's end."""
        self.kubectl("delete", "ftj", "--all", "--wait=false")
        eventually(lambda: not self.cluster.client.items(self.namespace.path("pods")), "no pods", START_SECONDS)
        self.cluster.client.delete(f"/api/v1/namespaces/{self.namespace.name}")
