"""Names, labels and paths of what belongs to a job: deterministic, so that nothing has to be remembered."""

from __future__ import annotations

from finetune_api.v1alpha1 import API_VERSION, GROUP, KIND, FineTuneJobSpec

JOB_NAME_LABEL = f"{GROUP}/job-name"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "finetune-operator"
REPORTING_CONTROLLER = f"{GROUP}/finetune-operator"
RUN_ANNOTATION = f"{GROUP}/run"
PROGRESS_AUDIENCE = f"{GROUP}/progress"
"""Of the tokens that pods report their progress with: they are good for nothing else."""
PROGRESS_CA_ANNOTATION = f"{GROUP}/progress-ca"
SHAPE_ANNOTATION = f"{GROUP}/shape"
"""On the Job: what of the spec only a new Job can take on (plan/shape.py)."""
KUEUE_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
KUEUE_WORKLOADS = "workloads.kueue.x-k8s.io"
KUEUE_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
"""On each of those: the Job that it stands for."""

RUN_FILE = "run.json"
RUN_MOUNT = "/etc/finetune"
CLAIMS_MOUNT = "/workspace/volumes"
SCRATCH_MOUNT = "/tmp"  # noqa: S108 - the pod's own, on an emptyDir
PROGRESS_MOUNT = "/var/run/finetune"
WORK_FOLDER = ".finetune"
CONTAINER = "trainer"
RENDEZVOUS_PORT = 29500
FIRST_INDEX = "0"
"""The node that reports and has the result, as Kubernetes numbers the pods of an Indexed Job."""


def service_name(job: str, uid: str) -> str:
    """The headless Service that nodes find each other by.

    It is this job's alone: that of a job which had the name before may still be there, and is about to go.
    """
    return f"{job}-{uid[:8]}"


def first_address(job: str, uid: str) -> str:
    """Where a job's nodes find the first of them: under the Service, by the host name that an Indexed Job's pod has."""
    return f"{job}-{FIRST_INDEX}.{service_name(job, uid)}"


def labels(job: str) -> dict[str, str]:
    """Labels of every child."""
    return {
        JOB_NAME_LABEL: job,
        MANAGED_BY_LABEL: MANAGED_BY,
        "app.kubernetes.io/name": "finetune-job",
        "app.kubernetes.io/instance": job,
        "app.kubernetes.io/component": CONTAINER,
    }


def owner_reference(name: str, uid: str) -> dict[str, object]:
    """The reference that makes Kubernetes delete a child with its job."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def claim_of(uri: str) -> str | None:
    """The claim of a pvc:// URI."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "pvc" else None


def claims(spec: FineTuneJobSpec) -> dict[str, bool]:
    """Every claim a job's pods mount, and whether they write to it."""
    found = {claim: False for _, source in spec.sources() if (claim := claim_of(source.uri))}
    if output := claim_of(spec.output.uri):
        found[output] = True
    return found


def claim_path(claim: str) -> str:
    """Where a claim is mounted."""
    return f"{CLAIMS_MOUNT}/{claim}"


def work_dir(spec: FineTuneJobSpec, uid: str) -> str:
    """Where checkpoints go: beside the output, where they outlive a pod; scratch space when the output is no claim."""
    output = claim_of(spec.output.uri)
    return f"{claim_path(output)}/{WORK_FOLDER}/{uid}" if output else f"{SCRATCH_MOUNT}/{WORK_FOLDER}/{uid}"
