"""A job on this machine: its directory, and whether it is Complete or goes on from an earlier run."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, Termination
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.v1alpha1.status import Result
from finetune_api.values import OBJECT_STORE
from finetune_operator.plan.names import claim_of
from finetune_trainer import storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.hold import LOCK

WRONG_COMMAND_LINE = 2
"""The exit code that argparse has for one."""
_VOLUMES = "volumes"
_CARD = "README.md"


class LocalRefused(Exception):
    """A job cannot run on this machine; the message says why and what to do."""

    def __init__(self, message: str, code: int = ExitCode.SPEC_INVALID) -> None:
        super().__init__(message)
        self.code = code


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
        return None if uri.startswith(OBJECT_STORE) else self.run.local_path(uri)

    def termination(self) -> Termination | None:
        """The trainer's last word, if it could say one."""
        try:
            return Termination.model_validate_json(self.termination_file.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None

    def result(self) -> Result | None:
        """What tuning did, if an earlier run of the very same job came to its end."""
        termination = self.termination()
        return termination.result if termination else None

    def has_model(self, result: Result) -> bool:
        """Whether the model of that result is where this job's model belongs, as far as this machine can tell."""
        if result.uri != self.run.spec.output.uri:
            return False
        return self.output is None or _holds(self.output, result.digest)


def place(job: FineTuneJob, manifest: Path, volumes: Mapping[str, Path], work_dir: Path, fresh: bool) -> Placed:
    """A job with its directory, where it goes on from an earlier run unless it is to be a fresh one.

    Nothing is written. Raises LocalRefused when the earlier run was of another spec.
    """
    namespace = job.metadata.namespace or "default"
    directory = (work_dir / f"{namespace}.{job.metadata.name}").resolve()
    run = Run(
        name=job.metadata.name,
        namespace=namespace,
        uid=str(uuid.uuid4()),
        spec=job.spec,
        volumes=_with_output_volume(job, volumes, directory),
        work_dir=str(directory),
        manifest_dir=str(manifest.resolve().parent),
    )
    if not fresh and (earlier := _earlier_run(directory)):
        if earlier.digest() != run.digest():
            raise LocalRefused(
                f"{directory} holds a run of {run.name} with another spec; its checkpoints do not fit. "
                "Use --fresh to start over, or --work-dir for another directory"
            )
        run = run.model_copy(update={"uid": earlier.uid})
    return Placed(job, run)


def forget(directory: Path) -> None:
    """Remove what an earlier run left; not its model, which only a finished one replaces, and not the lock."""
    for path in directory.iterdir():
        if path.name not in (LOCK, _VOLUMES):
            storage.remove(path)


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Turn what the file system refuses in a job's directory into LocalRefused."""
    try:
        yield
    except TrainerError as error:
        raise LocalRefused(f"{error.message}; {error.hint}", error.code) from None
    except OSError as error:
        place = error.filename or directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LocalRefused(f"{place}: no space left on the device; free some", ExitCode.STORAGE_FULL) from None
        raise LocalRefused(
            f"{place}: {error.strerror}; name a directory that can be written to with --work-dir",
            ExitCode.OUTPUT_REFUSED,
        ) from None


def _holds(directory: Path, digest: str) -> bool:
    """Whether a directory holds the model with that digest, every file in its full length.

    Its card may have been edited, which is no reason to write another model.
    """
    try:
        if storage.digest(directory) != digest:
            return False
        files = storage.files_of_manifest((directory / storage.MANIFEST).read_bytes())
        weighed = {name: size for name, (size, _) in files.items() if name != _CARD}
        return all((directory / name).stat().st_size == size for name, size in weighed.items())
    except (OSError, storage.NotWhole):
        return False


def _with_output_volume(job: FineTuneJob, volumes: Mapping[str, Path], directory: Path) -> dict[str, str]:
    """The volumes, and for an output claim that is not among them a folder beside the checkpoints."""
    found = {claim: str(path.resolve()) for claim, path in volumes.items()}
    claim = claim_of(job.spec.output.uri)
    if claim is None or claim in volumes:
        return found
    return {**found, claim: str(directory / _VOLUMES / claim)}


def _earlier_run(directory: Path) -> Run | None:
    try:
        return Run.model_validate_json((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # pydantic's errors are ValueErrors, and so is text that is not UTF-8
        return None
