"""Places a job on this machine: its directories, its volumes, and whether it goes on from an earlier run."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.run import Run, Termination
from finetune_api.v1alpha1 import FineTuneJob


class LocalRefused(Exception):
    """A job cannot be placed on this machine; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A job with its directory."""

    job: FineTuneJob
    run: Run

    @property
    def directory(self) -> Path:
        """Where the job's checkpoints and records are."""
        return Path(self.run.work_dir)

    @property
    def run_file(self) -> Path:
        """What the trainer reads."""
        return self.directory / "run.json"

    @property
    def log_file(self) -> Path:
        """What the trainer prints."""
        return self.directory / "trainer.log"

    @property
    def progress_file(self) -> Path:
        """The trainer's events, a JSON object a line."""
        return self.directory / "progress.jsonl"

    @property
    def termination_file(self) -> Path:
        """The trainer's last word."""
        return self.directory / "termination.json"

    @property
    def output(self) -> Path | None:
        """The directory that the model goes to; None when it goes into an object store."""
        uri = self.run.spec.output.uri
        return None if uri.startswith("s3://") else self.run.local_path(uri)

    def termination(self) -> Termination | None:
        """The trainer's last word, if it could say one."""
        try:
            return Termination.model_validate_json(self.termination_file.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None

    def is_complete(self) -> bool:
        """Whether an earlier run of the very same job is Complete and its model, if on this machine, still there."""
        termination = self.termination()
        return termination is not None and termination.result is not None and (not self.output or self.output.is_dir())


def parse_volumes(options: Sequence[str]) -> dict[str, str]:
    """CLAIM=DIRECTORY options as a map. Raises LocalRefused."""
    volumes = {}
    for option in options:
        claim, equals, directory = option.partition("=")
        if not (claim and equals and directory):
            raise LocalRefused(f"--volume {option}: write it as CLAIM=DIRECTORY")
        if not Path(directory).is_dir():
            raise LocalRefused(f"--volume {option}: {directory} is no directory")
        volumes[claim] = str(Path(directory).resolve())
    return volumes


def place(job: FineTuneJob, manifest: Path, volumes: Mapping[str, str], work_dir: Path, fresh: bool) -> Placed:
    """Give a job its directory, and go on from an earlier run there. Raises LocalRefused when that was another spec."""
    namespace = job.metadata.namespace or "default"
    directory = (work_dir / f"{namespace}.{job.metadata.name}").resolve()
    if fresh and directory.exists():
        shutil.rmtree(directory)
    run = Run(
        name=job.metadata.name,
        namespace=namespace,
        uid=str(uuid.uuid4()),
        spec=job.spec,
        volumes=_with_output_volume(job, volumes, directory),
        work_dir=str(directory),
        manifest_dir=str(manifest.resolve().parent),
    )
    if earlier := _earlier_run(directory):
        if earlier.digest() != run.digest():
            raise LocalRefused(
                f"{directory} holds a run of {run.name} with another spec; its checkpoints do not fit. "
                "Use --fresh to start over, or --work-dir for another directory"
            )
        run = run.model_copy(update={"uid": earlier.uid})
    placed = Placed(job, run)
    directory.mkdir(parents=True, exist_ok=True)
    placed.run_file.write_text(run.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    return placed


def _with_output_volume(job: FineTuneJob, volumes: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The volumes, and for an output claim that is not among them a folder beside the checkpoints."""
    scheme, _, rest = job.spec.output.uri.partition("://")
    claim = rest.partition("/")[0]
    if scheme != "pvc" or claim in volumes:
        return dict(volumes)
    return {**volumes, claim: str(directory / "volumes" / claim)}


def _earlier_run(directory: Path) -> Run | None:
    try:
        return Run.model_validate_json((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
