"""Places all jobs of a call on this machine, or none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path

from finetune_api.manifest import ManifestInvalid, load_jobs
from finetune_cli.local import Placed, forget, place, writing_to
from finetune_cli.volumes import new_volumes
from finetune_trainer.hold import only_trainer_in
from finetune_trainer.storage import replace_file


def place_all(manifests: Sequence[Path], volumes: Mapping[str, Path], work_dir: Path, fresh: bool) -> list[Placed]:
    """Every job of the manifests with its directory, ready for the trainer. Raises ManifestInvalid or LocalRefused.

    Nothing is touched before all of them were found to be right.
    """
    jobs = [(path, job) for path in manifests for job in load_jobs(path)]
    new = new_volumes(volumes, [job for _, job in jobs])
    placed = [place(job, path, volumes, work_dir, fresh) for path, job in jobs]
    _refuse_shared_places(placed)
    _prepare(placed, fresh)
    for directory in new:
        with writing_to(directory):
            directory.mkdir(parents=True, exist_ok=True)
    return placed


def _refuse_shared_places(placed: Sequence[Placed]) -> None:
    for one, other in combinations(placed, 2):
        if one.directory == other.directory:
            raise ManifestInvalid([f"the job {_name(one)} is given more than once"])
        if _output(one) == _output(other):
            raise ManifestInvalid(
                [
                    f"the jobs {_name(one)} and {_name(other)} write the same output, {_output(one)}; "
                    "give each of them one of its own in spec.output.uri"
                ]
            )


def _prepare(placed: Sequence[Placed], fresh: bool) -> None:
    """Write what the trainers read; of a fresh start, with nothing else there, and refused while a trainer runs."""
    with ExitStack() as held:
        for one in placed:
            with writing_to(one.directory):
                one.directory.mkdir(parents=True, exist_ok=True)
                if fresh:
                    held.enter_context(only_trainer_in(one.directory))
        for one in placed:
            with writing_to(one.directory):
                if fresh:
                    forget(one.directory)
                replace_file(one.run_file, one.run.model_dump_json(by_alias=True, exclude_none=True))


def _name(placed: Placed) -> str:
    return f"{placed.run.namespace}/{placed.run.name}"


def _output(placed: Placed) -> str:
    return str(placed.output.resolve()) if placed.output else placed.run.spec.output.uri.rstrip("/")
