"""`kubectl finetune describe`: where a job stands, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.status import Phase
from finetune_cli.display import duration, number
from finetune_cli.kubectl.advice import advice
from finetune_cli.kubectl.cluster import Cluster, Object, event_time
from finetune_cli.kubectl.facts import Facts, age, utc_now
from finetune_cli.kubectl.refusals import advice_on_refusal, words_of_refusal
from finetune_cli.text import add_row, say
from finetune_operator.plan.diagnosis import was_removed, why_pod_failed, why_waiting
from finetune_operator.plan.late import PODS_REFUSED
from finetune_operator.plan.snapshot import ObservedPod, observe_pod

_EVENTS = 10


def describe(cluster: Cluster, namespace: str, name: str, console: Console) -> int:
    """Print it all; returns 0."""
    facts = Facts(cluster.job(namespace, name))
    pods = [observe_pod(pod) for pod in cluster.pods(namespace, name)]
    events = cluster.events(namespace, [name, *(pod.name for pod in pods)])
    say(console, f"{namespace}/{name}: {facts.state}\n")
    _print_why(facts, words_of_refusal(facts, events), console)
    _print_facts(facts, console)
    if pods:
        console.print(_attempts(pods))
    if events:
        say(console, "")
        console.print(_event_table(events[-_EVENTS:]))
    return 0


def _print_why(facts: Facts, refusal: str, console: Console) -> None:
    reason, message = (PODS_REFUSED, refusal) if refusal else facts.cause
    say(console, f"Why   {reason}{f': {message}' if message else ''}")
    job = (facts.namespace, facts.name)
    begun = facts.status.start_time is not None
    if todo := advice_on_refusal(refusal, *job) or advice(reason, *job, begun=begun):
        say(console, f"Do    {todo}")
    if facts.phase == Phase.FAILED:
        say(console, f"Log   kubectl finetune logs {facts.name} -n {facts.namespace}")
    say(console, "")


def _print_facts(facts: Facts, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for label, value in _facts(facts):
        add_row(table, label, value)
    console.print(table)
    say(console, "")


def _facts(facts: Facts) -> Iterator[tuple[str, str]]:
    spec, status, now = facts.spec, facts.status, utc_now()
    yield "Task", f"{spec.get('task')}, strategy {status.strategy or '-'}"
    if status.progress and (choice := status.progress.choice):
        yield "Chosen", f"{choice.strategy}, by strategy.auto: {choice.reason}"
    yield "Model", str(spec.get("model", {}).get("uri"))
    yield "Data", str(spec.get("data", {}).get("train", {}).get("uri"))
    yield "Output", str(spec.get("output", {}).get("uri"))
    yield "Age", age((now - facts.created).total_seconds())
    if status.start_time is not None:
        waited = max(0, int((status.start_time - facts.created).total_seconds()))
        ran = max(0, int(((status.completion_time or now) - status.start_time).total_seconds()))
        until = "to its end" if facts.has_ended else "since"
        yield "Time", f"{duration(waited)} until its first pod ran, {duration(ran)} {until}"
    yield "Restarts", str(status.restarts)
    if (progress := status.progress) and progress.total_steps:
        eta = f", {duration(progress.eta_seconds)} to go" if progress.eta_seconds and not facts.has_ended else ""
        yield "Progress", f"step {progress.step} of {progress.total_steps} ({progress.percent} %){eta}"
        terms = ", ".join(f"{name} {number(value)}" for name, value in progress.loss_terms.items())
        yield "Loss", f"{number(progress.loss)}{f' ({terms})' if terms else ''}"
        if progress.evaluation:
            yield "Evaluation", ", ".join(f"{name} {number(value)}" for name, value in progress.evaluation.items())
        if progress.forgetting is not None:
            yield "Forgetting", f"{number(progress.forgetting)} of {facts.metric} on the retention rows"
        if saved := progress.last_checkpoint:
            yield "Checkpoint", f"step {saved.step}, {age((now - saved.time).total_seconds())} ago"


def _attempts(pods: Sequence[ObservedPod]) -> Table:
    """Every pod there is, with how it ended."""
    table = Table(title="Pods", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("pod", "phase", "age", "how it ended"):
        table.add_column(heading, overflow="fold")
    now = utc_now()
    for pod in pods:
        phase = "Terminating" if pod.being_deleted and not pod.has_ended else pod.phase
        add_row(table, pod.name, phase, age((now - pod.created).total_seconds()), _ending(pod))
    return table


def _ending(pod: ObservedPod) -> str:
    """How a pod ended, or what keeps it from starting."""
    if pod.phase == "Succeeded" or (pod.exit_code == ExitCode.COMPLETE and not pod.has_ended):
        return f"{ExitCode.COMPLETE.reason}: {ExitCode.COMPLETE.explanation}"
    if pod.has_ended or pod.exit_code is not None or was_removed(pod):
        cause = why_pod_failed(pod)
    else:
        cause = None if pod.waiting_message else why_waiting(pod)
    if cause:
        return f"{cause.reason}: {cause.message.removeprefix(f'{pod.name}: ').removeprefix(f'{pod.name} ')}"
    return pod.waiting_message or pod.waiting_reason or (pod.scheduling_message if pod.scheduled is False else "")


def _event_table(events: Sequence[Object]) -> Table:
    table = Table(title="Events", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for heading in ("ago", "type", "reason", "of", "what"):
        table.add_column(heading, overflow="fold")
    now = utc_now()
    for event in events:
        about = event["involvedObject"]
        add_row(table,
            age((now - event_time(event)).total_seconds()), event.get("type", ""), event.get("reason", ""),
            f"{about.get('kind', '')} {about['name']}", event.get("message", ""),
        )  # fmt: skip
    return table
