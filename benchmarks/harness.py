"""Runs jobs for benchmarks as a user would, by `finetune run`, and writes figures with what they were measured on."""

from __future__ import annotations

import argparse
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
    """What figures were measured on, the command that made them, and the commit, where there is one."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor()
    )
    versions = {name: importlib.metadata.version(name) for name in packages}
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    command = f"{threads}python benchmarks/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}"
    commit = _commit()
    return {
        "command": command,
        **({"commit": commit} if commit else {}),
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
    """A benchmark's runs by name, in its file of results as soon as each has ended, each with what it was made on.

    A run that is there is not made again unless that is asked for; several processes may share the work.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._machine = machine()
        self._again = False

    def parser(self, description: str | None) -> argparse.ArgumentParser:
        """The arguments that all benchmarks of runs have."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
        parser.add_argument("--again", action="store_true", help="make runs again that the results have already")
        return parser

    def parse(self, parser: argparse.ArgumentParser) -> argparse.Namespace:
        """The arguments given."""
        options = parser.parse_args()
        self._again = options.again
        return options

    def is_made(self, key: str, **fields: Any) -> bool:
        """Whether a run with these fields is there, and may stay."""
        run = self.known().get(key)
        return not self._again and run is not None and all(run.get(name) == value for name, value in fields.items())

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
        if self.is_made(key, job=spec) and (left is None or left.exists()):
            return
        name = re.sub("[^a-z0-9]+", "-", f"{self._name}-{key}".lower()).strip("-")
        measured = run_job(spec, name, volumes)
        self.put(key, {"job": spec, **as_json(measured)})
        after = ", ".join(f"{metric} {value:.4f}" for metric, value in measured.result.after.items())
        print(f"{key}: {after} ({measured.cpu_seconds:.0f} CPU-s)", flush=True)

    def put(self, key: str, run: dict[str, Any]) -> None:
        """Write a run into the file. A machine that is said there for all is that of runs which name none."""
        with _locked(Path(tempfile.gettempdir(), f"{self._name}.lock")):
            path = RESULTS / f"{self._name}.json"
            found = json.loads(path.read_text()) if path.exists() else {}
            runs = {**found.get("runs", {}), key: {"machine": self._machine, **run}}
            shared = {} if all("machine" in one for one in runs.values()) else {"machine": found["machine"]}
            write_results(self._name, {**shared, "runs": dict(sorted(runs.items()))})


def mean_and_each(values: Iterable[float], digits: int = 3) -> str:
    """A mean and what it is of, for a cell of a table."""
    each = list(values)
    return f"{statistics.mean(each):.{digits}f} ({', '.join(f'{value:.3f}' for value in each)})"


def share_trained(result: Mapping[str, Any]) -> str:
    """The share of a result's parameters that was trained, for a cell of a table."""
    return f"{result['trainableParameters'] / result['totalParameters']:.2%}"


def _commit() -> str:
    """The commit that is checked out, with `-dirty` when files differ from it; empty without a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
