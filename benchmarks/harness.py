"""Runs jobs for benchmarks as a user would, by `finetune run`, and writes figures with what they were measured on."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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


class Runs:
    """A benchmark's runs by name, in its file of results as soon as each has ended.

    A run that is there is not made again; several processes may share the work.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def known(self) -> dict[str, Any]:
        """The runs so far."""
        path = RESULTS / f"{self._name}.json"
        return dict(json.loads(path.read_text())["runs"]) if path.exists() else {}

    def of_each(self, groups: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """The runs of each group, of those that have any: runs are named `<group>/<seed>`."""
        known = self.known()
        found = {group: [run for name, run in known.items() if name.rpartition("/")[0] == group] for group in groups}
        return {group: runs for group, runs in found.items() if runs}

    def job(
        self, key: str, spec: dict[str, Any], volumes: Mapping[str, Path] | None = None, left: Path | None = None
    ) -> None:
        """Run a job, unless it was and what it must have left is there; the job is stored with its figures."""
        if self.known().get(key, {}).get("job") == spec and (left is None or left.exists()):
            return
        name = re.sub("[^a-z0-9]+", "-", f"{self._name}-{key}".lower()).strip("-")
        measured = run_job(spec, name, volumes)
        self.put(key, {"job": spec, **as_json(measured)})
        after = ", ".join(f"{metric} {value:.4f}" for metric, value in measured.result.after.items())
        print(f"{key}: {after} ({measured.cpu_seconds:.0f} CPU-s)", flush=True)

    def put(self, key: str, run: dict[str, Any]) -> None:
        """Write a run into the file."""
        with _locked(Path(tempfile.gettempdir(), f"{self._name}.lock")):
            runs = {**self.known(), key: run}
            write_results(self._name, {"machine": machine(), "runs": dict(sorted(runs.items()))})


def mean_and_each(values: Iterable[float], digits: int = 3) -> str:
    """A mean and what it is of, for a cell of a table."""
    each = list(values)
    return f"{statistics.mean(each):.{digits}f} ({', '.join(f'{value:.3f}' for value in each)})"


def share_trained(result: Mapping[str, Any]) -> str:
    """The share of a result's parameters that was trained, for a cell of a table."""
    return f"{result['trainableParameters'] / result['totalParameters']:.2%}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
