"""Where the claims of pvc:// URIs are on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune_api.v1alpha1 import FineTuneJob
from finetune_cli.local import LocalRefused
from finetune_operator.plan.names import claim_of


def parse_volume(option: str) -> tuple[str, Path]:
    """CLAIM=DIRECTORY as both. Raises what argparse expects."""
    claim, equals, directory = option.partition("=")
    if not (claim and equals and directory):
        raise argparse.ArgumentTypeError(f"{option!r}: write it as CLAIM=DIRECTORY")
    return claim, directory_of(directory)


def directory_of(option: str) -> Path:
    """The directory that an option names; the shell leaves the ~ of --work-dir=~/x as it is."""
    try:
        return Path(option).expanduser() if option.startswith("~") else Path(option)
    except RuntimeError:  # a ~ of nobody's
        raise argparse.ArgumentTypeError(f"{option!r}: there is no such home directory") from None


def new_volumes(volumes: Mapping[str, Path], jobs: Iterable[FineTuneJob]) -> list[Path]:
    """The directories that are still to be made: a job writes to them, and none reads from them before.

    Raises LocalRefused for every other one that is not there.
    """
    new: dict[str, Path] = {}
    absent = {claim: directory for claim, directory in volumes.items() if not directory.is_dir()}
    for job in jobs:
        for field, source in job.spec.sources():
            if (claim := claim_of(source.uri)) in absent.keys() - new.keys():
                raise _no_directory(claim, absent, f", and {field} of {job.metadata.name} is {source.uri}")
        if (claim := claim_of(job.spec.output.uri)) in absent and not absent[claim].exists():
            new[claim] = absent[claim]
    for claim in absent.keys() - new.keys():
        raise _no_directory(claim, absent)
    return list(new.values())


def _no_directory(claim: str, volumes: Mapping[str, Path], why: str = "") -> LocalRefused:
    return LocalRefused(f"--volume {claim}={volumes[claim]}: {volumes[claim]} is no directory{why}")
