"""What a job's pods ask of the cluster. The pod's shape is closed: only what is listed here can be set."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import GROUP, Contract, Rule
from finetune_api.values import DnsSubdomain, ExtendedResource, LabelKey, LabelValue, Quantity, Unique

_RESERVED_LABEL = (
    rf"^(([-a-z0-9.]+\.)?({re.escape(GROUP)}|kubernetes\.io|k8s\.io|x-k8s\.io)/|job-name$|controller-uid$)"
)
_SYSTEM_PRIORITY = "system-"


class ResourcesSpec(Contract):
    """The size of the job: one pod per node."""

    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Pods that train together, each on a node's devices."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs per pod; 0 trains on CPU. Without a cluster the devices of this machine are used."""
    gpu_resource_name: ExtendedResource = "nvidia.com/gpu"
    """The resource that a node offers its GPUs by."""
    cpu: Quantity | None = None
    """CPU request of a pod; as many threads compute, rounded up."""
    memory: Quantity | None = None
    """Memory request and limit of a pod."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, part of the memory."""
    ephemeral_storage: Quantity | None = None
    """Request and limit of a node's disk for what goes with the pod: the hub's models and data, caches, and the
    checkpoints of an output that is no claim. By default nothing is requested, and the limit is the operator's."""


class TolerationOperator(StrEnum):
    """How a toleration matches a taint."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """A taint's effect."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Contract):
    """A Kubernetes toleration."""

    key: LabelKey
    """The taint's key."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """Equal compares the value; Exists does not."""
    value: LabelValue | None = None
    """The taint's value."""
    effect: TaintEffect | None = None
    """The taint's effect; all of them when absent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.operator) || self.operator != 'Exists' || !has(self.value)",
            message="value cannot be given with operator Exists",
            holds=lambda self: self.operator != TolerationOperator.EXISTS or self.value is None,
            field=".value",
        ),
    )


# Others are read by the loader, by Python and by libraries: LD_PRELOAD and PYTHONPATH would bring in a user's own code.
# An object store's endpoint and region stand beside its keys in a secret; the trainer tells them as little as those.
_VARIABLE = "_(TOKEN|KEY|KEY_ID|SECRET|PASSWORD|USERNAME|PROXY|proxy)$|^AWS_(ENDPOINT_URL|REGION)$"


class SecretVariable(Contract):
    """An environment variable filled from a secret in the job's namespace, such as HF_TOKEN."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """A credential or proxy by its name (..._TOKEN, _KEY, _SECRET, ..., _PROXY), or AWS_ENDPOINT_URL, or AWS_REGION."""
    secret: DnsSubdomain
    """The secret's name."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """The key in the secret."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.name.matches('{_VARIABLE}')",
            message="a variable of a secret ends in _TOKEN, _KEY, _KEY_ID, _SECRET, _PASSWORD, _USERNAME or _PROXY, "
            "or is AWS_ENDPOINT_URL or AWS_REGION",
            holds=lambda self: re.search(_VARIABLE, self.name) is not None,
            field=".name",
        ),
    )


class PodSpec(Contract):
    """Where and how the pods run."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(default_factory=dict)
    """Labels a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints that are tolerated."""
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] = Field(default_factory=dict)
    """Labels added to the pods."""
    env_from_secrets: Annotated[tuple[SecretVariable, ...], Field(max_length=16), Unique("name")] = ()
    """Environment variables from secrets."""
    priority_class_name: DnsSubdomain | None = None
    """The pods' priority class."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"!has(self.labels) || !self.labels.exists(key, key.matches(r'{_RESERVED_LABEL}'))",
            message=f"labels of {GROUP}, kubernetes.io, k8s.io and x-k8s.io, and job-name and controller-uid, are not "
            "for users: by them pods are found, counted and queued",
            holds=lambda self: not any(re.search(_RESERVED_LABEL, key) for key in self.labels),
            field=".labels",
        ),
        Rule(
            cel=f"!has(self.priorityClassName) || !self.priorityClassName.startsWith('{_SYSTEM_PRIORITY}')",
            message="the priority classes system-... are for the cluster's own pods; use one made for jobs",
            holds=lambda self: not (self.priority_class_name or "").startswith(_SYSTEM_PRIORITY),
            field=".priorityClassName",
        ),
    )
