"""What the platform's administrator decides for every job's pods."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """Defaults of training pods."""

    trainer_image: str
    image_pull_policy: str = "IfNotPresent"
    progress_url: str = ""
    """Base URL of the progress server; empty when there is none, and pods then get no token at all."""
    progress_audience: str = "finetune-operator.io/progress"
    progress_ca: str = ""
    """PEM certificate that the progress server is verified by."""
    termination_grace_seconds: int = 120
    """Enough to finish a step and save a checkpoint."""
    user_id: int = 65532
    ephemeral_storage: str = "50Gi"
    """Limit of the pod's scratch space (/tmp and the Hugging Face cache) for a job that does not ask for its own."""
