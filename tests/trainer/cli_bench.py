"""A directory in which `finetune run` is called, as a person calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.documents import write_document

FINETUNE = [sys.executable, "-m", "finetune_cli.main"]
TEXTS = {"positive": "a good and lovely film number", "negative": "a bad and boring film number"}


def rows(count: int) -> list[dict[str, Any]]:
    labels = list(TEXTS)
    return [{"text": f"{TEXTS[labels[i % 2]]} {i}", "label": labels[i % 2]} for i in range(count)]


class Bench:
    """A directory with a manifest, data and the model; `finetune run` is called in it."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.write_rows("train.jsonl", rows(64))
        self.write_rows("evaluation.jsonl", rows(100)[80:])
        self.spec: dict[str, Any] = {
            "task": "TextClassification",
            "model": {"uri": f"file://{model}"},
            "data": {"train": {"uri": "file://train.jsonl"}, "evaluation": {"uri": "file://evaluation.jsonl"}},
            "strategy": {"full": {}},
            "training": {"epochs": 2, "batchSize": 8, "learningRate": "1e-3"},
            "output": {"uri": "pvc://models/tiny"},
            "resources": {"gpusPerNode": 0},
        }

    def write_rows(self, name: str, content: list[dict[str, Any]]) -> None:
        (self.directory / name).write_text("".join(json.dumps(row) + "\n" for row in content))

    def write_job(self, name: str = "tiny", **changes: Any) -> None:
        """A manifest, `NAME.yaml`, of the spec with such changes."""
        manifest = {
            "apiVersion": "finetune-operator.io/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": self.spec | changes,
        }
        (self.directory / f"{name}.yaml").write_text(write_document(manifest))

    def start(self, *options: str, **how: Any) -> subprocess.Popen[str]:
        """`finetune run` of the job "tiny" and what else is given; `how` changes the process."""
        self.write_job()
        usual = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(
            [*FINETUNE, "run", "--metrics-port", "0", "tiny.yaml", *options],
            cwd=self.directory,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            **usual | how,
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    @property
    def work(self) -> Path:
        return self.directory / ".finetune" / "default.tiny"

    @property
    def model(self) -> Path:
        """Where the model goes without --volume."""
        return self.work / "volumes/models/tiny"

    def termination(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.work / "termination.json").read_text())
        return content

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.work / "progress.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [event for event in found if event["event"] == kind]


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def trainer_of(process: subprocess.Popen[str]) -> int:
    """The trainer that `finetune run` has started."""
    [trainer] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(trainer)


def has_ended(process: int) -> bool:
    """Whether a process is gone, or waits for nobody but whoever buries it."""
    try:
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True
