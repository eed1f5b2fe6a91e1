"""Finds what a URI names: a file or directory on this machine, downloaded before or not, or something of the hub.

A path is judged by where it really leads: out of its volume, or to the kernel's files and secrets, is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, UnresolvedUri
from finetune_api.v1alpha1.sources import DataSource, ModelSource
from finetune_api.values import OBJECT_STORE
from finetune_trainer.data.formats import Row, read_file
from finetune_trainer.errors import TrainerError

TRAIN_SPLITS = ("train",)
EVALUATION_SPLITS = ("validation", "test")
# /proc/self/environ holds the pod's secrets; the others devices, and the tokens that are mounted into pods.
_CLOSED = ("/proc", "/sys", "/dev", "/run/secrets", "/var/run/secrets", "/run/finetune", "/var/run/finetune")


def model_directory(source: ModelSource, run: Run) -> Path:
    """The directory of a model; one on the hub is downloaded. Raises TrainerError."""
    if not source.uri.startswith("hf://"):
        directory = local_path(source.uri, run, ExitCode.MODEL_INVALID)
        _check_links(directory, source.uri, run)
        return directory
    from finetune_trainer.data import hub  # takes seconds to import; most runs read local files

    return hub.download_model(source)


def model_name(source: ModelSource, directory: Path) -> str:
    """What a model is found by later: its name on the hub, its URI in a store, or the directory it was read from."""
    if source.uri.startswith(OBJECT_STORE):
        return source.uri
    return source.uri.removeprefix("hf://") if source.uri.startswith("hf://") else str(directory.resolve())


def read_rows(source: DataSource, run: Run, splits: tuple[str, ...] = TRAIN_SPLITS) -> Iterator[Row]:
    """The rows of a data source; `splits` are the hub splits to look for when none is given. Raises TrainerError."""
    if not source.uri.startswith("hf://"):
        return read_file(local_path(source.uri, run, ExitCode.DATA_INVALID), source.format)
    from finetune_trainer.data import hub

    return hub.read_dataset(source, splits)


def local_path(uri: str, run: Run, code: ExitCode) -> Path:
    """The path of a pvc:// or file:// URI. Raises TrainerError, with `code` when it leads to where it must not."""
    try:
        path = run.local_path(uri)
    except UnresolvedUri as error:
        raise TrainerError(
            ExitCode.SPEC_INVALID, str(error), "without a cluster, name its directory: --volume CLAIM=DIRECTORY"
        ) from None
    _check(path, uri, run, code)
    return path


def _check_links(directory: Path, uri: str, run: Run) -> None:
    """Raise TrainerError when a link anywhere in a model's directory leads to where it must not."""
    visited = set()
    for folder, folders, files in os.walk(directory, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        for name in (*folders, *files):
            if (path := Path(folder, name)).is_symlink():
                _check(path, uri, run, ExitCode.MODEL_INVALID)


def _check(path: Path, uri: str, run: Run, code: ExitCode) -> None:
    real = Path(os.path.realpath(path))
    if uri.startswith("pvc://"):
        claim = uri.removeprefix("pvc://").partition("/")[0]
        if not real.is_relative_to(os.path.realpath(run.volumes[claim])):
            raise TrainerError(
                code,
                f"{uri}: {path} is a link to {str(real)!r}, out of the volume",
                "copy what it links to into the volume; links within it are followed",
            )
    elif closed := next((place for place in _CLOSED if real.is_relative_to(os.path.realpath(place))), None):
        raise TrainerError(
            code,
            f"{uri}: {str(real)!r} is in {closed}, from where nothing is read and where nothing is written",
            "name a file or directory of a volume",
        )
