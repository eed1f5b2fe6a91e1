"""One run of a job as the trainer gets it: the spec, and where its URIs are on this machine."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from finetune_api.base import Contract
from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.v1alpha1.status import Progress, Result


class UnresolvedUri(ValueError):
    """A URI that has no place on this machine; the message says what to do."""


class Run(Contract):
    """What the operator (in an annotation of the pod) and `finetune run` (in a file) hand to the trainer."""

    name: str
    """The job's name."""
    namespace: str = "default"
    """The job's namespace."""
    uid: str
    """The job's UID. Checkpoints of another UID are never used."""
    spec: FineTuneJobSpec
    """The job's spec."""
    volumes: dict[str, str] = Field(default_factory=dict)
    """Where each claim of a pvc:// URI is mounted."""
    work_dir: str
    """Directory for checkpoints and records; it has to outlive the process for a run to resume."""
    has_gpus: bool = False
    """Whether the process was given the GPUs that the spec asks for: that there are fewer is an error then."""
    manifest_dir: str = "/"
    """What a relative file:// URI starts from."""
    downloads: dict[str, str] = Field(default_factory=dict, exclude=True)
    """Where the trainer has put what each s3:// and https:// URI names; nobody else knows."""
    first_started_at: datetime | None = Field(default=None, exclude=True)
    """When the trainer began this run for the first time. What asks for the date is told this one."""

    def local_path(self, uri: str) -> Path:
        """The path of a pvc:// or file:// URI, or of what was downloaded. Raises UnresolvedUri."""
        if uri in self.downloads:
            return Path(self.downloads[uri])
        scheme, _, rest = uri.partition("://")
        if scheme == "file":
            return Path(self.manifest_dir, rest)
        if scheme != "pvc":
            raise UnresolvedUri(f"{uri} is not a path")
        claim, _, below = rest.partition("/")
        if claim not in self.volumes:
            known = ", ".join(sorted(self.volumes)) or "none"
            raise UnresolvedUri(f"{uri}: the claim {claim!r} is not mounted (mounted: {known})")
        return Path(self.volumes[claim], below.lstrip("/"))  # or pvc://claim//etc would be /etc

    def digest(self) -> str:
        """SHA-256 over what decides the trained weights: a checkpoint is only used by the run it was made for.

        Defaults are left out: a field that a later release adds makes no checkpoint another run's.
        """
        decisive = self.spec.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude_defaults=True, exclude=_NOT_DECISIVE
        )
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self) -> str:
        """What is kept of a run is bound to this: the job, and what decides the trained weights."""
        return f"{self.uid}/{self.digest()}"


_NOT_DECISIVE = {
    "checkpoint", "output", "resources", "pod", "queue_name", "suspend", "backoff_limit",
    "active_deadline_seconds", "ttl_seconds_after_finished",
}  # fmt: skip


class Termination(Contract):
    """The trainer's last word, written to the container's termination message (at most 4,096 bytes)."""

    exit_code: ExitCode
    """The process's exit code."""
    reason: str
    """The code as a word."""
    message: Annotated[str, Field(max_length=2048)]
    """What happened."""
    hint: Annotated[str, Field(max_length=512)] = ""
    """What to do."""
    progress: Progress | None = None
    """How far training got."""
    result: Result | None = None
    """What tuning did, when Complete."""
