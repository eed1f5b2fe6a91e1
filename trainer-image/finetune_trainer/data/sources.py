"""Finds what a URI names: a file or directory on this machine, or something of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run, UnresolvedUri
from finetune_api.v1alpha1.sources import DataSource, ModelSource
from finetune_trainer.data.formats import Row, read_file
from finetune_trainer.errors import TrainerError

TRAIN_SPLITS = ("train",)
EVALUATION_SPLITS = ("validation", "test")


def model_directory(source: ModelSource, run: Run) -> Path:
    """The directory of a model; one on the hub is downloaded. Raises TrainerError."""
    if not source.uri.startswith("hf://"):
        return local_path(source.uri, run)
    from finetune_trainer.data import hub  # takes seconds to import; most runs read local files

    return hub.download_model(source)


def model_name(source: ModelSource, directory: Path) -> str:
    """What a model is found by later: its name on the hub, or the directory it was read from."""
    return source.uri.removeprefix("hf://") if source.uri.startswith("hf://") else str(directory.resolve())


def read_rows(source: DataSource, run: Run, splits: tuple[str, ...] = TRAIN_SPLITS) -> Iterator[Row]:
    """The rows of a data source; `splits` are the hub splits to look for when none is given. Raises TrainerError."""
    if not source.uri.startswith("hf://"):
        return read_file(local_path(source.uri, run), source.format)
    from finetune_trainer.data import hub

    return hub.read_dataset(source, splits)


def local_path(uri: str, run: Run) -> Path:
    """The path of a pvc:// or file:// URI. Raises TrainerError."""
    try:
        return run.local_path(uri)
    except UnresolvedUri as error:
        raise TrainerError(
            ExitCode.SPEC_INVALID, str(error), "without a cluster, name its directory: --volume CLAIM=DIRECTORY"
        ) from None
