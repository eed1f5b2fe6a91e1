"""`kubectl finetune logs`: what the trainers of the newest attempt print, of all nodes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from finetune_cli.kubectl.cluster import Cluster, ClusterProblem, Object
from finetune_cli.kubectl.facts import Facts
from finetune_cli.text import say
from finetune_operator.plan.snapshot import ObservedPod, observe_pod

_POLL_SECONDS = 1.0


def newest_attempt(pods: Sequence[Object]) -> list[ObservedPod]:
    """The newest pod of each node, of the newest Job: the pods come in the order of their creation."""
    seen = [observe_pod(pod) for pod in pods]
    newest = {pod.index: pod for pod in seen if pod.job_uid == seen[-1].job_uid}
    return [newest[index] for index in sorted(newest, key=lambda index: (len(index), index))]


def logs(
    cluster: Cluster, namespace: str, name: str, console: Console, *, follow: bool = False, tail: int | None = None
) -> int:
    """Print the logs, and with `follow` go on until the pods end. Raises ClusterProblem when nothing has started."""
    pods = _pods(cluster, namespace, name, follow=follow)
    lines: queue.Queue[str | ClusterProblem | None] = queue.Queue()

    def read(pod: ObservedPod) -> None:
        prefix = f"[{pod.index}] " if len(pods) > 1 else ""
        try:
            for line in cluster.log(namespace, pod.name, follow=follow, tail=tail):
                lines.put(f"{prefix}{line}")
        except ClusterProblem as error:
            lines.put(error)
        finally:
            lines.put(None)

    for pod in pods:
        threading.Thread(target=read, args=(pod,), daemon=True).start()
    return _print(lines, len(pods), console)


def _print(lines: queue.Queue[str | ClusterProblem | None], readers: int, console: Console) -> int:
    """Print lines as they come until every reader has ended; returns 1 if one of them could not read."""
    code = 0
    while readers:
        line = lines.get()
        if line is None:
            readers -= 1
        elif isinstance(line, ClusterProblem):
            say(console, f"! {line}")
            code = 1
        else:
            # Not console.print: a log's own colors and long lines stay as they are.
            console.file.write(f"{line}\n")
            console.file.flush()
    return code


def _pods(cluster: Cluster, namespace: str, name: str, *, follow: bool) -> list[ObservedPod]:
    """The pods of the newest attempt, once all have started if they are to be followed."""
    for facts in _looks(cluster, namespace, name, again=follow):
        found = cluster.pods(namespace, name)
        pods = newest_attempt(found) if found else []
        started = [pod for pod in pods if pod.started is not None]
        if started and (not follow or len(started) == len(pods) or facts.has_ended):
            return started
        if facts.has_ended:
            raise ClusterProblem(
                f"the pods of {name} are gone, and their logs with them; describe {name} has its last words"
            )
    reason, message = facts.cause
    raise ClusterProblem(f"no pod of {name} has started, so there is no log yet: {facts.phase}, {reason}: {message}")


def _looks(cluster: Cluster, namespace: str, name: str, *, again: bool) -> Iterator[Facts]:
    """The job now, and from time to time if asked for."""
    yield Facts(cluster.job(namespace, name))
    while again:
        time.sleep(_POLL_SECONDS)
        yield Facts(cluster.job(namespace, name))
