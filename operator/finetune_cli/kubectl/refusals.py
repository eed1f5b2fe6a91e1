"""Why the API server refuses a job's pods, and what to do: its words are in the Events of the Job, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.v1alpha1.status import Phase
from finetune_cli.kubectl.advice import fill
from finetune_cli.kubectl.cluster import Object, event_time
from finetune_cli.kubectl.facts import Facts
from finetune_operator.plan.late import PODS_REFUSED

_REFUSED, _MADE = "FailedCreate", "SuccessfulCreate"
_PREFIX = "Error creating: "

_ADVICE = (
    (
        "must specify limits.cpu",
        "A quota here counts CPU limits, and a training pod has none: the administrator has to give them by a "
        "LimitRange of this namespace (default.cpu), or count requests.cpu instead.",
    ),
    (
        "must specify ",
        "A quota here counts what the job does not ask for: give it in spec.resources, or have a LimitRange of this "
        "namespace give it.",
    ),
    (
        "exceeded quota",
        "kubectl describe quota -n NAMESPACE shows what is used. Ask for less in spec.resources, wait for other jobs "
        "to end, or have the quota raised.",
    ),
    (
        "no PriorityClass with name",
        "kubectl get priorityclasses lists those there are: name one in spec.pod.priorityClassName, or none.",
    ),
    (
        "RuntimeClass",
        "kubectl get runtimeclasses lists those there are; the administrator sets the one for GPUs "
        "(FINETUNE_GPU_RUNTIME_CLASS_NAME).",
    ),
    (
        "usage per Container is",
        "kubectl describe limitrange -n NAMESPACE shows what a container may ask for: change spec.resources.",
    ),
    (
        "violates PodSecurity",
        "Training pods fit the restricted standard, so something adds to them what does not, such as a mesh that is "
        "not installed with its CNI plug-in: leave these pods out of it (docs/installing.md, Service meshes).",
    ),
    (
        "security context constraint",
        "OpenShift lets no namespace choose the user of its pods: the administrator has to set the operator's "
        "FINETUNE_FIXED_USER to false (docs/installing.md, OpenShift).",
    ),
    (
        "serviceaccount",
        "Pods need the ServiceAccount of that name: kubectl create serviceaccount default -n NAMESPACE",
    ),
    (
        "webhook",
        "A webhook of this cluster refuses the pods or does not answer: change what it objects to, or ask the "
        "administrator.",
    ),
    (
        "denied request",
        "A policy of this cluster refuses the pods: change what it objects to in spec.pod or spec.resources, or ask "
        "the administrator.",
    ),
)


def words_of_refusal(facts: Facts, events: Sequence[Object]) -> str:
    """What the API server says of the pods it refuses; empty where they could be made. Events are in their order."""
    if facts.phase != Phase.PENDING:
        return ""
    wanted = (_REFUSED,) if facts.cause[0] == PODS_REFUSED else (_REFUSED, _MADE)
    tries = [event for event in events if event.get("reason") in wanted and _is_of(facts, event)]
    if not tries or tries[-1]["reason"] != _REFUSED:
        return ""
    return str(tries[-1].get("message", "")).removeprefix(_PREFIX)


def advice_on_refusal(words: str, namespace: str, name: str) -> str:
    """What to do about it; empty where the words are not known."""
    return next((fill(advice, namespace, name) for part, advice in _ADVICE if part in words), "")


def _is_of(facts: Facts, event: Object) -> bool:
    """Whether an Event is about the job's Job, and not about an earlier one under the same name."""
    about = event["involvedObject"]
    return (about.get("kind"), about["name"]) == ("Job", facts.name) and event_time(event) >= facts.created
