"""Runs jobs for benchmarks as a user would, by `finetune run`, and writes figures with what they were measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_api.documents import write_document
from finetune_api.run import Termination
from finetune_api.v1alpha1.status import Result

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "build" / "assets"
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Measured:
    """A job that ended Complete."""

    result: Result
    cpu_seconds: float
    """CPU time of the whole `finetune run`, with its start, its evaluations and the check of the export."""
    training_seconds: float
    """Wall time from the first step to the last, without evaluations before and after."""


def run_job(spec: dict[str, Any], name: str, volumes: Mapping[str, Path] | None = None) -> Measured:
    """Run one job from the example assets in a directory of its own; raises CalledProcessError when it fails.

    `volumes` are claims besides `examples` and `models`.
    """
    manifest = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {"output": {"uri": f"pvc://models/{name}"}, "resources": {"gpusPerNode": 0}, **spec},
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "job.yaml")
        path.write_text(write_document(manifest))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        mounts = {"examples": ASSETS, **(volumes or {})}
        places = [word for claim, place in mounts.items() for word in ("--volume", f"{claim}={place}")]
        command = ["finetune", "run", str(path), *places, "--work-dir", scratch]
        subprocess.run(
            [*command, "--metrics-port", "0"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        directory = Path(scratch, f"default.{name}")
        result = Termination.model_validate_json((directory / "termination.json").read_text()).result
        training_seconds = _training_seconds(directory / "progress.jsonl")
    if result is None:
        raise RuntimeError(f"{name} ended without a result")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(result, round(cpu, 1), training_seconds)


def _training_seconds(progress: Path) -> float:
    """From the first progress event (training starts) to the first one of the last step."""
    events = [json.loads(line) for line in progress.read_text().splitlines()]
    steps = [event for event in events if event["event"] == "progress" and event["progress"]["totalSteps"]]
    last = next(event for event in steps if event["progress"]["step"] == event["progress"]["totalSteps"])
    return (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(steps[0]["time"])).total_seconds()


def machine(packages: Iterable[str] = _PACKAGES) -> dict[str, Any]:
    """What figures were measured on, and the command that made them."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor()
    )
    versions = {name: importlib.metadata.version(name) for name in packages}
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    command = f"{threads}python benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    return {
        "command": command,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def write_results(name: str, figures: dict[str, Any]) -> Path:
    """Write figures as JSON under benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    return path


def as_json(measured: Measured) -> dict[str, Any]:
    """A measurement as JSON."""
    return {**asdict(measured), "result": measured.result.to_json()}


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
