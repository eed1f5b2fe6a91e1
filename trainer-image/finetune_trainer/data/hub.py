"""Reads models and data sets from the Hugging Face hub, and turns its many errors into four."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from huggingface_hub import errors as hub_errors

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.sources import DataSource, ModelSource
from finetune_trainer.data.formats import Row
from finetune_trainer.errors import TrainerError

# Weights are read from safetensors only, so nothing else is downloaded: no pickle, no code.
_MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
_DATASET_PREFIX = "hf://datasets/"
_NOT_FOUND = (
    hub_errors.RepositoryNotFoundError,
    hub_errors.RevisionNotFoundError,
    datasets.exceptions.DatasetNotFoundError,
)


def download_model(source: ModelSource) -> Path:
    """The local snapshot of a model. Raises TrainerError."""
    repository = source.uri.removeprefix("hf://").strip("/")
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=source.revision, allow_patterns=_MODEL_FILES)
        )
    except (OSError, ValueError, hub_errors.EntryNotFoundError) as error:
        raise _trainer_error(error, source.uri, ExitCode.MODEL_INVALID) from None


def read_dataset(source: DataSource, splits: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a data set's split: the one given, else the first of `splits` it has. Raises TrainerError."""
    repository = source.uri.removeprefix(_DATASET_PREFIX).strip("/")
    try:
        dataset = _load(repository, source, splits)
    except (OSError, ValueError, datasets.exceptions.DatasetsError, hub_errors.EntryNotFoundError) as error:
        raise _trainer_error(error, source.uri, ExitCode.DATA_INVALID) from None
    class_labels = {
        column: feature for column, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)
    }
    for number, values in enumerate(dataset, start=1):
        # Names say more than class numbers, and only names can be compared between two sources.
        named = {column: _class_name(feature, values[column]) for column, feature in class_labels.items()}
        yield Row(f"{repository} row {number}", {**values, **named})


def _load(repository: str, source: DataSource, splits: tuple[str, ...]) -> Any:
    available = datasets.get_dataset_split_names(repository, source.subset, revision=source.revision)
    wanted = (source.split,) if source.split else splits
    split = next((name for name in wanted if name in available), None)
    if split is None:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{source.uri} has no split {' or '.join(map(str, wanted))}; it has {', '.join(available)}",
            "set split to one of them",
        )
    return datasets.load_dataset(repository, source.subset, split=split, revision=source.revision)


def _class_name(feature: Any, number: int | None) -> str | None:
    return None if number is None or number < 0 else str(feature.int2str(number))


def _trainer_error(error: Exception, uri: str, not_found: ExitCode) -> TrainerError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, hub_errors.GatedRepoError) or status in (401, 403):
        return TrainerError(
            ExitCode.CREDENTIALS_INVALID,
            f"{uri}: the hub refuses access, or there is no such repository",
            "check the name; for a private or gated one set HF_TOKEN (pod.envFromSecrets) to a token that may read it",
        )
    missing = (
        hub_errors.RepositoryNotFoundError,
        hub_errors.RevisionNotFoundError,
        datasets.exceptions.DatasetNotFoundError,
    )
    if isinstance(error, missing) or status == 404:
        return TrainerError(not_found, f"{uri}: not found on the hub", "check owner, name and revision")
    if isinstance(error, ValueError):
        return TrainerError(not_found, f"{uri}: {reason}", "check subset, split and the name")
    return TrainerError(
        ExitCode.NETWORK_UNAVAILABLE,
        f"{uri}: the hub cannot be reached: {reason}",
        "check the network, HF_ENDPOINT and proxies",
    )
