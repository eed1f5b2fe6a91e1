"""What a job's pods ask of the cluster. The pod's shape is closed: only what is listed here can be set."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.base import GROUP, Contract, Rule
from finetune_api.values import DnsSubdomain, ExtendedResource, LabelKey, LabelValue, Quantity, Unique


class ResourcesSpec(Contract):
    """The size of the job: one pod per node."""

    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Pods that train together, each on a node's devices."""
    gpus_per_node: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs per pod; 0 trains on CPU. Without a cluster the devices of this machine are used."""
    gpu_resource_name: ExtendedResource = "nvidia.com/gpu"
    """The resource that a node offers its GPUs by."""
    cpu: Quantity | None = None
    """CPU request of a pod."""
    memory: Quantity | None = None
    """Memory request and limit of a pod."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, part of the memory."""


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
            cel="self.operator != 'Exists' || !has(self.value)",
            message="value cannot be given with operator Exists",
            holds=lambda self: self.operator != TolerationOperator.EXISTS or self.value is None,
            field=".value",
        ),
    )


class SecretVariable(Contract):
    """An environment variable filled from a secret in the job's namespace, such as HF_TOKEN."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """The variable's name."""
    secret: DnsSubdomain
    """The secret's name."""
    key: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")]
    """The key in the secret."""


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
            cel=f"!has(self.labels) || !self.labels.exists(key, key.startsWith('{GROUP}/'))",
            message=f"labels of {GROUP} are the operator's own",
            holds=lambda self: not any(key.startswith(f"{GROUP}/") for key in self.labels),
            field=".labels",
        ),
    )
