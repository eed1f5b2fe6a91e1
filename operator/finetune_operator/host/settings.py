"""The operator's own settings, from environment variables: typed and checked once, at the border."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Json, ValidationInfo, field_validator, model_validator

from finetune_api.v1alpha1.scheduling import TaintEffect, Toleration, TolerationOperator
from finetune_api.values import DNS_SUBDOMAIN_PATTERN, Quantity
from finetune_operator.host.setting_values import (
    Address,
    File,
    HttpsAddress,
    ImageName,
    Namespace,
    OneNamespaceOrAll,
    PodName,
    Port,
)
from finetune_operator.plan.settings import PodSettings

PREFIX = "FINETUNE_"
GPU_TAINT = Toleration(key="nvidia.com/gpu", operator=TolerationOperator.EXISTS, effect=TaintEffect.NO_SCHEDULE)
"""What nodes with GPUs are commonly tainted with, to keep pods away that ask for none."""


class OperatorSettings(BaseModel):
    """Each field is the environment variable FINETUNE_<NAME>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainer_image: ImageName
    """Image of the training pods."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the training pods."""
    ephemeral_storage: Quantity = "50Gi"
    """Limit of a training pod's scratch space, where `resources.ephemeralStorage` gives none."""
    fixed_user: bool = True
    """Training pods run as the images' user; without it as whom the cluster chooses, as OpenShift does by namespace."""
    gpu_runtime_class_name: Annotated[str, Field(max_length=253, pattern=rf"{DNS_SUBDOMAIN_PATTERN}|^$")] = ""
    """RuntimeClass of training pods that ask for GPUs; the cluster's default when empty."""
    gpu_tolerations: Json[tuple[Toleration, ...]] = (GPU_TAINT,)
    """Taints that training pods which ask for GPUs tolerate: a JSON list."""
    watch_namespace: OneNamespaceOrAll = ""
    """Watch this namespace only; all when empty."""
    operator_namespace: Namespace = "finetune-system"
    """Where the operator's Lease is."""
    identity: PodName = ""
    """This replica's name in the Lease; its pod's name."""
    pod_ip: Address = ""
    """Where the other replicas reach this one; without it, a report that meets one that does not lead is refused."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Jobs brought up to date at the same time."""
    resync_seconds: Annotated[float, Field(ge=1, le=86400, allow_inf_nan=False)] = 300.0
    """Time between two full lists, give or take a tenth."""
    lease_seconds: Annotated[int, Field(ge=3, le=3600)] = 15
    """A replica that has not renewed for this long no longer leads."""
    http_port: Port = 8080
    """Health, and metrics when they have no certificate; not encrypted."""
    metrics_port: Port = 8444
    """Metrics, when they have a certificate."""
    metrics_certificate: File | None = None
    """PEM certificate of the metrics: with it they are served over TLS, to whom the API server lets get `/metrics`."""
    metrics_key: Annotated[File | None, Field(validate_default=True)] = None
    """Its private key."""
    progress_port: Port = 8443
    """The progress server, TLS."""
    progress_certificate: File | None = None
    """PEM certificate of the progress server."""
    progress_key: Annotated[File | None, Field(validate_default=True)] = None
    """Its private key."""
    progress_url: HttpsAddress = ""
    """Where pods reach the progress server; they report nothing when empty."""
    progress_ca: File | None = None
    """PEM certificate that pods verify it by; the certificate itself when absent."""

    @field_validator("metrics_key", "progress_key")
    @classmethod
    def _goes_with_the_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        key = str(info.field_name)
        certificate = key.replace("_key", "_certificate")
        if (value is None) != (info.data.get(certificate) is None):
            raise ValueError(f"give both {PREFIX}{certificate.upper()} and {PREFIX}{key.upper()}, or neither")
        return value

    @field_validator("progress_url", "progress_ca")
    @classmethod
    def _needs_a_progress_server(cls, value: str | Path | None, info: ValidationInfo) -> str | Path | None:
        if value and "progress_certificate" in info.data and info.data["progress_certificate"] is None:
            raise ValueError(f"there is no progress server without {PREFIX}PROGRESS_CERTIFICATE; give both, or neither")
        return value

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        for (one, its), (other, port) in combinations(self._served(), 2):
            if its == port != 0:  # 0 is any that is free
                raise ValueError(f"{PREFIX}{one} and {PREFIX}{other} are both {port}; give each a port of its own")
        return self

    def _served(self) -> Iterator[tuple[str, int]]:
        yield "HTTP_PORT", self.http_port
        if self.metrics_certificate is not None:
            yield "METRICS_PORT", self.metrics_port
        if self.progress_certificate is not None:
            yield "PROGRESS_PORT", self.progress_port

    def progress_address(self) -> str:
        """Where the other replicas reach this one's progress server; empty when they do not."""
        if not self.pod_ip or self.progress_certificate is None:
            return ""
        return f"[{self.pod_ip}]:{self.progress_port}" if ":" in self.pod_ip else f"{self.pod_ip}:{self.progress_port}"

    def pod_settings(self, authority: str = "") -> PodSettings:
        """The part that shapes pods, which verify the progress server by the authority (PEM)."""
        return PodSettings(
            trainer_image=self.trainer_image,
            image_pull_policy=self.image_pull_policy,
            ephemeral_storage=self.ephemeral_storage,
            fixed_user=self.fixed_user,
            gpu_runtime_class_name=self.gpu_runtime_class_name,
            gpu_tolerations=self.gpu_tolerations,
            progress_url=self.progress_url,
            progress_ca=authority if self.progress_url else "",
        )


def from_environment(environment: Mapping[str, str] = os.environ) -> OperatorSettings:
    """The settings; raises pydantic's ValidationError that names the variable's field."""
    given = {key.removeprefix(PREFIX).lower(): value for key, value in environment.items() if key.startswith(PREFIX)}
    return OperatorSettings.model_validate(given)
