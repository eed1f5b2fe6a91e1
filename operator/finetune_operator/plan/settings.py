"""What the platform's administrator decides for every job's pods."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.v1alpha1.scheduling import Toleration


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """What shapes training pods besides their job."""

    trainer_image: str
    image_pull_policy: str
    progress_url: str
    """Base URL of the progress server; empty when there is none, and pods then get no token at all."""
    progress_ca: str
    """PEM certificate that the progress server is verified by."""
    fixed_user: bool
    """Pods run as the images' user; without it as whom the cluster chooses, as OpenShift does by namespace."""
    gpu_runtime_class_name: str
    """RuntimeClass of pods that ask for GPUs; the cluster's default when empty."""
    gpu_tolerations: tuple[Toleration, ...]
    """Taints that pods which ask for GPUs tolerate, besides those that their job names."""
    ephemeral_storage: str
    """Limit of the pod's scratch space (/tmp and the Hugging Face cache) for a job that does not ask for its own."""
