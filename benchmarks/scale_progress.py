"""Measures running jobs that report to the operator: pods and tokens are real API objects, nothing trains."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scale_bed import NODE, Bed, Object, cpu_seconds, in_flight, memory_mib, percentile, wait_until_quiet

# scale_bed puts the folder of the test bed on the path.
from certificate_pairs import make_pair
from testbed.audit import Write
from testbed.operator_process import OperatorProcess
from testbed.processes import HOST

Figures = dict[str, Any]

_AUDIENCE = "finetune-operator.io/progress"
_INTERVAL_SECONDS = 5.0
_SCRAPE_SECONDS = 15.0
_START_SECONDS = 20.0
"""All jobs start within an interval, and each one's first report waits for the review of its token."""
_LOAD = Path(__file__).with_name("progress_load.py")


def measure_progress(num_jobs: int, seconds: int, *, keep_alive: bool) -> Figures:
    """Bring the jobs to Running, then have their trainers report: each by new connections, or by one that is kept."""
    names = [f"job-{number}" for number in range(num_jobs)]
    with Bed.start(with_controllers=False) as bed:
        pair = make_pair(bed.server.folder / "progress", f"IP:{HOST}")
        certificate, key = pair / "tls.crt", pair / "tls.key"
        process = OperatorProcess(
            bed.server, "operator", progress_certificate=str(certificate), progress_key=str(key), resync_seconds=60
        )
        with process.running():
            tokens = asyncio.run(_run_jobs(bed, process, names))
            wait_until_quiet(process.pid, 120)
            measured = _measure(bed, process, tokens, certificate, seconds, keep_alive)
    return {"num_jobs": num_jobs, "interval_seconds": _INTERVAL_SECONDS, **measured}


def _measure(
    bed: Bed, process: OperatorProcess, tokens: dict[str, str], certificate: Path, seconds: int, keep_alive: bool
) -> Figures:
    since, cpu_before = time.time(), cpu_seconds(process.pid)
    with _scraped(process) as scrapes:
        found = _play(process, tokens, certificate, seconds, keep_alive)
    took = time.time() - since
    cpu = cpu_seconds(process.pid) - cpu_before
    answers, times = found["answers"], [took for _, took in found["seconds"]]
    at_start = [took for sent, took in found["seconds"] if sent < _START_SECONDS]
    later = [took for sent, took in found["seconds"] if sent >= _START_SECONDS]
    requests = list(bed.server.audit.requests())
    own = [request for request in requests if request.credential == process.credential]
    recent = [request for request in own if request.time.timestamp() >= since]
    reviews = sum(request.resource == "tokenreviews" for request in recent)
    written = [request for request in recent if request.resource == "finetunejobs/status" and request.code < 300]
    gaps = _gaps(written)
    return {
        "seconds": round(took, 1),
        "reports": len(times),
        "reports_per_second": round(len(times) / took, 1),
        "answers": answers,
        "refused": len(times) - answers.get("200", 0),
        "p50_ms": round(statistics.median(later) * 1000, 1),
        "p99_ms": round(percentile(later, 0.99) * 1000, 1),
        "p99_ms_in_the_first_20_s": round(percentile(at_start, 0.99) * 1000, 1),
        "max_ms": round(max(times) * 1000, 1),
        "status_writes": len(written),
        "status_writes_per_job_in_15_s": round(len(written) / len(tokens) / (took / 15), 2),
        "failed_writes": sum(request.code >= 300 for request in recent),
        "shortest_interval_seconds": round(min(gaps, default=0.0), 2),
        "token_reviews_per_minute": round(60 * reviews / took, 1),
        "cpu_percent_of_a_core": round(100 * cpu / took, 1),
        "load_cpu_percent_of_a_core": round(100 * found["cpu_seconds"] / took, 1),
        "scrape_seconds": round(max(scrapes, default=0.0), 2),
        **memory_mib(process.pid),
    }


def _gaps(written: list[Write]) -> list[float]:
    """Seconds between two status writes of a job, as the API server received them."""
    times = defaultdict(list)
    for request in written:
        times[request.name].append(request.time.timestamp())
    return [later - earlier for one in times.values() for earlier, later in itertools.pairwise(sorted(one))]


def _play(
    process: OperatorProcess, tokens: dict[str, str], certificate: Path, seconds: int, keep_alive: bool
) -> Figures:
    work = {
        "host": HOST,
        "port": process.progress_port,
        "ca_file": str(certificate),
        "interval": _INTERVAL_SECONDS,
        "seconds": seconds,
        "keep_alive": keep_alive,
        "targets": [(f"/v1/team/{name}", token) for name, token in tokens.items()],
    }
    done = subprocess.run([sys.executable, str(_LOAD)], input=json.dumps(work), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: Figures = json.loads(done.stdout)
    return found


@contextmanager
def _scraped(process: OperatorProcess) -> Iterator[list[float]]:
    """Scrape as Prometheus does meanwhile; yields how long each took."""
    stop, took = threading.Event(), []

    def scrape() -> None:
        while not stop.wait(_SCRAPE_SECONDS):
            started = time.monotonic()
            process.metrics()
            took.append(time.monotonic() - started)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


async def _run_jobs(bed: Bed, process: OperatorProcess, names: list[str]) -> dict[str, str]:
    """FineTuneJobs, a running pod of each, and the token that the kubelet would give it."""
    await bed.create_jobs(names)
    while bed.count(bed.children_path()) < len(names):
        await asyncio.sleep(0.5)
    children = {child["metadata"]["name"]: child for child in bed.client.items(bed.children_path())}
    tokens: dict[str, str] = {}
    async with bed.session() as send:

        async def run(name: str) -> None:
            pod = await send("POST", bed.pods_path(), _pod(children[name]))
            path = bed.pods_path(pod["metadata"]["name"])
            await send("PATCH", f"{path}/status", {"status": _running(pod)})
            bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
            spec = {"audiences": [_AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound}
            answer = await send("POST", bed.account_token_path(), {"spec": spec})
            tokens[name] = answer["status"]["token"]

        await in_flight(run, names)
    return tokens


def _pod(child: Object) -> Object:
    """The pod that the Job controller and the scheduler would make of a Job."""
    metadata, template = child["metadata"], child["spec"]["template"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
    annotations = {**template["metadata"].get("annotations", {}), "batch.kubernetes.io/job-completion-index": "0"}
    own = {"name": f"{metadata['name']}-0", "ownerReferences": [{**owner, "controller": True}]}
    of_pod = {**template["metadata"], **own, "annotations": annotations}
    return {"metadata": of_pod, "spec": {**template["spec"], "nodeName": NODE}}


def _running(pod: Object) -> Object:
    [container] = pod["spec"]["containers"]
    started = {"running": {"startedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}}
    seen = {"name": container["name"], "image": container["image"], "imageID": "", "ready": True, "restartCount": 0}
    conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [{**seen, "state": started}]}
