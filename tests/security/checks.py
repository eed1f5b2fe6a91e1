"""The 26 checks of `make security`: what each guarantees, and what these tests cannot show of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One check; tests say by `@pytest.mark.security(number)` that they are part of it."""

    number: int
    name: str
    guarantee: str
    """What holds when its tests pass, in a sentence for users."""
    not_shown: str = ""
    """What of it is not shown by these tests, and would have to be looked at elsewhere."""


CHECKS = (
    Check(1, "restricted pods", "Training pods of every sample fit the restricted Pod Security Standard, unwarned."),
    Check(
        2,
        "whatever the user writes",
        "A field that would shape the pod otherwise is refused; unasked validation drops it. The pod is the same.",
    ),
    Check(
        3,
        "read-only root",
        "The trainer works as user 65532 with a read-only root; it writes to /tmp, /dev/shm and its output alone.",
    ),
    Check(
        4,
        "no API token in pods",
        "No token of the API server is in a training pod; the one for progress gets 401 there.",
        "automount off on the namespace's default ServiceAccount, which is the platform's; on the pod it is",
    ),
    Check(
        5, "no choice of account", "A FineTuneJob cannot name a ServiceAccount; pods run as their namespace's default."
    ),
    Check(
        6,
        "least rights",
        "The operator's account may do what is listed in the golden file and nothing else that the API server knows.",
    ),
    Check(7, "every right is used", "No granted right is unused, and none was missing.", "runs on several nodes, GPUs"),
    Check(
        8, "one namespace", "With a Role alone the operator serves its namespace and sends no request about another."
    ),
    Check(
        9, "no reference across namespaces", "Nothing in a FineTuneJob names a namespace; every child is in its own."
    ),
    Check(
        10,
        "no confused deputy",
        "Who may only create FineTuneJobs reads no Secret, ConfigMap or claim by it; variables come from listed keys.",
        "what those see who may read logs or outputs too: data in messages",
    ),
    Check(11, "closed overrides", "What a user may set of a pod is a closed list; reserved labels are refused."),
    Check(12, "volumes", "A pod mounts claims of its namespace by name, and nothing of the node or another kind."),
    Check(13, "no takeover", "An object that has a child's name already is neither adopted, changed nor deleted."),
    Check(14, "no injection by names", "Names, labels and values of any kind reach no shell."),
    Check(15, "no path traversal", "No path leaves the volume or directory that it names."),
    Check(
        16,
        "no request forgery",
        "No address of the platform's own network is asked for what a user names, but an object store's that a secret "
        "names.",
    ),
    Check(17, "no remote code", "Code of a model or data repository never runs."),
    Check(18, "no pickle", "Weights and rows are never unpickled."),
    Check(19, "secrets stay secret", "A token is in no log, status, event, metric, checkpoint or model."),
    Check(
        20, "no injection into logs and metrics", "One record stays one record, and the number of series is bounded."
    ),
    Check(21, "metrics need a right", "Metrics are served over TLS to those whom the API server lets read them."),
    Check(
        22,
        "network policies",
        "The policies let reports and scrapes in, the API server, DNS and the hub out, and nothing else.",
        "another network plug-in than kube-router, by which the tests' node enforces them",
    ),
    Check(
        23,
        "admission",
        "Schema and CEL rules judge first, ValidatingAdmissionPolicies next; there is no webhook that could be down.",
    ),
    Check(
        24,
        "no flooding",
        "Specs and statuses are bounded, quotas are respected and told of, and no job keeps others from their turn.",
    ),
    Check(25, "images and dependencies", "Images run as nobody; everything in them is pinned by hash."),
    Check(26, "the repository", "No binaries, least permissions, and a way to report."),
)


def documented() -> str:
    """The table in docs/security.md."""
    rows = [f"| {check.number} | {check.guarantee} | {check.not_shown} |" for check in CHECKS]
    return "\n".join(["| check | what holds | what of it these tests do not show |", "|---|---|---|", *rows])
