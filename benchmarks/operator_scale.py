"""How does the operator hold at scale? On a real API server, by its audit log, as a process of its own.

Usage: python benchmarks/operator_scale.py create|hold|progress|progress-kept|table
  create         1,000 FineTuneJobs at once until each has its Job; the same in the style of kopf's tutorial
  hold           10,000 FineTuneJobs: writes and CPU at rest, and after a restart; memory
  progress       1,000 running jobs that report every 5 s over TLS, each time by a new connection
  progress-kept  the same, each by a connection that it keeps
  table          what was measured last, as Markdown
Each measures for a few minutes, prints its figures and puts them into results/operator_scale.json. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import RESULTS, machine, write_results
from operator_scale_table import table
from scale_bed import Bed, cpu_seconds, memory_mib, percentile, versions, wait_until_quiet
from scale_progress import measure_progress

# scale_bed puts the folder of the test bed on the path.
from testbed.audit import Write, credential_of
from testbed.operator_process import NAMESPACE, OperatorProcess, service_account_token
from testbed.processes import ServerProcess

Figures = dict[str, Any]

_NAME = "operator_scale"
_PARTS = ("create", "hold", "progress", "progress-kept")
_REST_SECONDS = 120
_TUTORIAL = Path(__file__).with_name("tutorial_operator.py")


def main() -> None:
    """Measure one part, or print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*_PARTS, "table"))
    parser.add_argument("--jobs", type=int, help="fewer or more than usual; nothing is then written")
    parser.add_argument("--seconds", type=int, default=120, help="how long jobs report")
    arguments = parser.parse_args()
    if arguments.part == "table":
        print(table(_written()))
        return
    if arguments.part == "create":
        figures = measure_create(arguments.jobs or 1_000)
    elif arguments.part == "hold":
        figures = measure_hold(arguments.jobs or 10_000)
    else:
        keep_alive = arguments.part == "progress-kept"
        figures = measure_progress(arguments.jobs or 1_000, arguments.seconds, keep_alive=keep_alive)
    command = " ".join(["python", "benchmarks/operator_scale.py", *sys.argv[1:]])
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
    part = {"command": command, "date": now, "machine": machine(()), "versions": versions(), "figures": figures}
    print(json.dumps(figures, indent=1))
    if arguments.jobs is None:
        measured = _written() | {arguments.part: part}
        written = {name: measured[name] for name in _PARTS if name in measured}
        print("written:", write_results(_NAME, written))
        print(table(written))


def measure_create(num_jobs: int) -> Figures:
    """1,000 at once: ours alone, ours while controllers make pods of the Jobs, and the tutorial's style."""
    names = [f"job-{number}" for number in range(num_jobs)]
    figures = {}
    for label, with_controllers in (("operator", False), ("operator_with_controllers", True)):
        with Bed.start(with_controllers=with_controllers) as bed:
            process = OperatorProcess(bed.server, "operator", resync_seconds=3600)
            with process.running():
                figures[label] = _create(bed, process.pid, process.credential, names)
    with Bed.start(with_controllers=False) as bed, _tutorial(bed) as (process_of_tutorial, credential):
        figures["tutorial_style"] = _create(bed, process_of_tutorial.pid, credential, names)
    return {"num_jobs": num_jobs, **figures}


def _create(bed: Bed, pid: int, credential: str, names: list[str]) -> Figures:
    cpu_before, started = cpu_seconds(pid), time.time()
    accepted = asyncio.run(bed.create_jobs(names))
    accepting_seconds = time.time() - started
    while bed.count(bed.children_path()) < len(names):
        if time.time() - started > 600:
            raise TimeoutError("not every FineTuneJob got its Job within ten minutes")
        time.sleep(0.5)
    cpu = wait_until_quiet(pid, 120) - cpu_before
    writes = bed.writes(credential)
    made = {write.name: write.time.timestamp() for write in writes if _is_job(write)}
    waits = [max(0.0, made[name] - accepted[name]) for name in names]
    seconds = max(made.values()) - started
    return {
        "seconds": round(seconds, 2),
        "seconds_to_accept": round(accepting_seconds, 2),
        "jobs_per_second": round(len(names) / seconds, 1),
        "p50_wait_seconds": round(statistics.median(waits), 3),
        "p99_wait_seconds": round(percentile(waits, 0.99), 3),
        "writes_per_job": round(len(writes) / len(names), 3),
        "writes": _by_kind(writes),
        "cpu_ms_per_job": round(cpu * 1000 / len(names), 2),
    }


@contextmanager
def _tutorial(bed: Bed) -> Iterator[tuple[ServerProcess, str]]:
    """The tutorial's operator, as an administrator: it writes annotations into the resource, which ours may not."""
    bed.server.kubectl("create", "serviceaccount", "tutorial", f"--namespace={NAMESPACE}")
    binding = ("create", "clusterrolebinding", "tutorial", "--clusterrole=cluster-admin")
    bed.server.kubectl(*binding, f"--serviceaccount={NAMESPACE}:tutorial")
    token = service_account_token(bed.server, account="tutorial")
    kubeconfig = bed.server.folder / "tutorial.kubeconfig"
    bed.server.write_kubeconfig(kubeconfig, token)
    command = [sys.executable, "-m", "kopf", "run", "--standalone", "--all-namespaces", str(_TUTORIAL)]
    process = ServerProcess("tutorial", command, bed.server.folder, {"KUBECONFIG": str(kubeconfig), "PATH": ""})
    with process.running():
        time.sleep(5)
        wait_until_quiet(process.pid, 60)
        yield process, credential_of(token)


def measure_hold(num_jobs: int) -> Figures:
    """10,000 of them, with their Jobs: at rest, and through a restart."""
    names = [f"job-{number}" for number in range(num_jobs)]
    with Bed.start(with_controllers=False) as bed:
        first = OperatorProcess(bed.server, "first")
        with first.running():
            created = _create(bed, first.pid, first.credential, names)
            at_rest = _rest(bed, first)
        bed.release_lease()
        second = OperatorProcess(bed.server, "second")
        with second.running(leading=False):
            restart = _restart(bed, second, num_jobs)
    return {"num_jobs": num_jobs, "creation": created, "at_rest": at_rest, "restart": restart}


def _rest(bed: Bed, process: OperatorProcess) -> Figures:
    since, cpu_before = time.time(), cpu_seconds(process.pid)
    time.sleep(_REST_SECONDS)
    cpu = cpu_seconds(process.pid) - cpu_before
    return {
        "seconds": _REST_SECONDS,
        "writes": len(bed.writes(process.credential, since)),
        "cpu_percent_of_a_core": round(100 * cpu / _REST_SECONDS, 2),
        **memory_mib(process.pid),
    }


def _restart(bed: Bed, process: OperatorProcess, num_jobs: int) -> Figures:
    """From the start of the process, which serves by now, until the first full reconcile is through."""
    started = time.monotonic()
    time.sleep(5)
    cpu = wait_until_quiet(process.pid, 180)
    seconds = time.monotonic() - started
    memory = memory_mib(process.pid)
    reconciled = process.metric("controller_runtime_reconcile_total")
    if reconciled < num_jobs or process.metric("workqueue_depth"):
        raise RuntimeError(f"quiet after {reconciled:.0f} of {num_jobs} reconciles:\n{process.log()}")
    scrape_before = time.monotonic()
    size = len(process.metrics())
    return {
        "writes": len(bed.writes(process.credential)),
        "reconciles": int(reconciled),
        "cpu_seconds": round(cpu, 2),
        "cpu_ms_per_job": round(cpu * 1000 / num_jobs, 2),
        "seconds_at_most": round(seconds, 1),
        **memory,
        "scrape": {"seconds": round(time.monotonic() - scrape_before, 2), "mib": round(size / 2**20, 1)},
        "after_scrapes": memory_mib(process.pid),
    }


def _is_job(write: Write) -> bool:
    return (write.verb, write.resource) == ("create", "jobs")


def _by_kind(writes: list[Write]) -> dict[str, int]:
    return dict(Counter(f"{write.verb} {write.resource}" for write in writes))


def _written() -> Figures:
    path = RESULTS / f"{_NAME}.json"
    figures: Figures = json.loads(path.read_text()) if path.exists() else {}
    return figures


if __name__ == "__main__":
    main()
