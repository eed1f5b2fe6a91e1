"""Run a Kubernetes cluster with the operator on this machine, to try it: `make cluster` and `make demo-cluster`.

It is the bed of the tests (tests/testbed), so PYTHONPATH has to name `tests`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from testbed.apiserver import ApiServer, ApiServerError
from testbed.binaries import BUILT_NAMES, BinariesUnavailableError, BuildFailedError, find
from testbed.client import Object
from testbed.cluster import Cluster, HasClient, Namespace
from testbed.node import NodeCluster
from testbed.node_machine import NodeUnavailableError, say, why_impossible
from testbed.operator_process import OperatorError, OperatorProcess

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "manifests" / "samples"
DEMO = ("sentiment-adapter", "sentiment-full")
ASSETS = ROOT / "build" / "assets"
FOLDER = ROOT / "build" / "cluster"
TRAINER_USER = 65532
DEMO_SECONDS = 1800.0

USAGE = """
The cluster runs. In another terminal, from here:

  export KUBECONFIG={folder}/kubeconfig PATH={folder}/bin:$PATH
  kubectl apply -f manifests/samples/sentiment-adapter.yaml
  kubectl get ftj --watch
  kubectl describe ftj sentiment-adapter

The claim `examples` is {assets}, to read; what jobs write to the claim `models` is in {folder}/models.
Metrics are at http://127.0.0.1:{port}/metrics, the operator's log is {log}.
{node}
Ctrl-C ends the cluster; the models stay."""
REAL_NODE = "Pods run in containers, on a node that lends them the libraries of {environment}."
PLAYED_NODE = """\
No container runs: {reason}. The control plane and the operator are real, and Jobs and pods are made, but their node is
only played, so pods stay Pending. docs/trying-on-a-cluster.md says what to do for a real one."""
RESULTS = (
    "JOB:.metadata.name,METRIC:.status.result.metric,BEFORE:.status.result.before.accuracy,"
    "AFTER:.status.result.after.accuracy,MAJORITY:.status.result.baseline,"
    "TRAINED:.status.result.trainableParameters,OF:.status.result.totalParameters,"
    "SECONDS:.status.result.durationSeconds,MODEL:.status.result.uri"
)
EXPECTED = (
    ApiServerError, BinariesUnavailableError, BuildFailedError, NodeUnavailableError, OperatorError,
)  # fmt: skip


class DemoError(RuntimeError):
    """The demo could not run to its end."""


def main() -> int:
    """Run the cluster until it is interrupted, or the demo until its jobs have ended; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", action="store_true", help="apply two samples, follow them to their end, and stop")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with ExitStack() as stack:
            if arguments.demo:
                run_demo(stack)
            else:
                run_until_interrupted(stack)
    except KeyboardInterrupt:
        say("stopped")
    except (*EXPECTED, DemoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_until_interrupted(stack: ExitStack) -> None:
    """The bed for a person."""
    reason = why_impossible()
    if reason:
        cluster: Cluster | NodeCluster = stack.enter_context(Cluster.start(find(BUILT_NAMES)))
        operator = OperatorProcess(cluster.server, "operator")
    else:
        cluster = stack.enter_context(NodeCluster.start())
        operator = cluster.operator()
    stack.enter_context(operator.running())
    prepare(cluster, cluster.server)
    node = PLAYED_NODE.format(reason=reason) if reason else REAL_NODE.format(environment=sys.prefix)
    log = cluster.server.folder / f"{operator.identity}.log"
    print(USAGE.format(folder=FOLDER, assets=ASSETS, port=operator.port, log=log, node=node), flush=True)
    while operator.serves():
        time.sleep(2)
    raise OperatorError(f"the operator has ended:\n{operator.log()[-4000:]}")


def run_demo(stack: ExitStack) -> None:
    """Apply two samples, follow them to their end, and show what came of them. Raises DemoError."""
    if reason := why_impossible():
        raise DemoError(f"the demo trains in pods, and {reason}; `make demo` runs the same jobs without a cluster")
    started = time.monotonic()
    cluster = stack.enter_context(NodeCluster.start())
    operator = stack.enter_context(cluster.operator().running())
    jobs = prepare(cluster, cluster.server)
    say(f"the cluster is ready after {time.monotonic() - started:.0f} s")
    show(cluster.server, "apply", *(f"--filename={SAMPLES / name}.yaml" for name in DEMO))
    follow(cluster.server, jobs)
    say(f"all jobs have ended after {time.monotonic() - started:.0f} s")
    show(cluster.server, "get", "finetunejobs", f"--output=custom-columns={RESULTS}")
    print("\nThe operator's metrics of the jobs:")
    print("\n".join(line for line in operator.metrics().splitlines() if line.startswith("finetune_job_")), flush=True)
    incomplete = [job["metadata"]["name"] for job in all_jobs(jobs) if phase(job) != "Complete"]
    for name in incomplete:
        show(cluster.server, "describe", "finetunejob", name)
        show(cluster.server, "logs", f"job/{name}", "--tail=30")
    if incomplete:
        raise DemoError(f"not Complete: {', '.join(incomplete)}")


def prepare(cluster: HasClient, server: ApiServer) -> Namespace:
    """The default namespace with the volumes that the samples name, and a kubeconfig and a kubectl for people."""
    namespace = Namespace("default", cluster)
    restricted = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    cluster.client.patch("/api/v1/namespaces/default", restricted)
    models = FOLDER / "models"
    models.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        # A folder of the host is not given to the pod's group, as other volumes are.
        os.chown(models, TRAINER_USER, TRAINER_USER)
    namespace.volume("examples", folder=str(ASSETS))
    namespace.volume("models", folder=str(models))
    server.write_kubeconfig(FOLDER / "kubeconfig", server.token)
    (FOLDER / "kubeconfig").chmod(0o600)
    kubectl = FOLDER / "bin" / "kubectl"
    kubectl.parent.mkdir(exist_ok=True)
    kubectl.unlink(missing_ok=True)
    kubectl.symlink_to(server.binaries.kubectl)
    return namespace


def follow(server: ApiServer, jobs: Namespace) -> None:
    """Show the table of jobs, a line for each change, until all have ended. Raises DemoError."""
    command = [str(server.binaries.kubectl), "get", "finetunejobs", "--watch"]
    environment = {**os.environ, "KUBECONFIG": str(server.kubeconfig)}
    deadline = time.monotonic() + DEMO_SECONDS
    with subprocess.Popen(command, env=environment) as table:
        try:
            while not all(phase(job) in ("Complete", "Failed") for job in all_jobs(jobs)):
                if time.monotonic() > deadline:
                    raise DemoError(f"the jobs have not ended within {DEMO_SECONDS:.0f} s")
                time.sleep(1)
            time.sleep(1)  # for the last line
        finally:
            table.terminate()


def all_jobs(namespace: Namespace) -> list[Object]:
    """Every FineTuneJob."""
    return namespace.cluster.client.items(namespace.job_path())


def phase(job: Object) -> str:
    """Where a job stands; empty before the operator has seen it."""
    return str(job.get("status", {}).get("phase", ""))


def show(server: ApiServer, *arguments: str) -> None:
    """Run kubectl, and show the command and its answer."""
    print(f"\n$ kubectl {' '.join(arguments)}", flush=True)
    done = server.kubectl(*arguments)
    print(done.stdout + done.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
