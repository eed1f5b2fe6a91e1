"""Reads models and data sets from the Hugging Face hub, and turns its many errors into a few clear ones."""

from __future__ import annotations

import errno
import functools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import datasets
import fsspec  # type: ignore[import-untyped]
import huggingface_hub
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils._http import default_client_factory

from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1.sources import DataSource, ModelSource
from finetune_trainer import weights
from finetune_trainer.data.class_names import class_names, with_names
from finetune_trainer.data.formats import Row
from finetune_trainer.data.nested import without_invented_nulls
from finetune_trainer.errors import TrainerError

_MODEL_PREFIX = "hf://"
_DATASET_PREFIX = "hf://datasets/"
_TOKEN = re.compile(r"[\w.-]*", re.ASCII)
_BATCH_ROWS = 1000
_UNREACHABLE = (
    hub_errors.HTTPError,  # of the HTTP client; HfHubHTTPError is one too, so those with a meaning are told first
    hub_errors.LocalEntryNotFoundError,
    hub_errors.FileMetadataError,
    ConnectionError,
    TimeoutError,
)
# The hub, this machine's disk (the cache), and what unpacks files of the two.
_PROTOCOLS = frozenset({"hf", "file", "local", "zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4"})
_PORTS = {"http": 80, "https": 443}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def download_model(source: ModelSource) -> Path:
    """The local snapshot of a model. Raises TrainerError."""
    repository = source.uri.removeprefix(_MODEL_PREFIX)
    _keep_quiet()
    _keep_to_the_endpoint()
    with _hub_errors(source.uri, source.revision, ExitCode.MODEL_INVALID):
        snapshot = huggingface_hub.snapshot_download(
            repository,
            revision=source.revision,
            allow_patterns=list(weights.MODEL_FILES),
            ignore_patterns=list(weights.NOT_MODEL_FILES),
        )
    _refuse_pickles(Path(snapshot), repository, source)
    return Path(snapshot)


def read_dataset(source: DataSource, splits: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a data set's split: the one given, else the first of `splits` it has. Raises TrainerError."""
    repository = source.uri.removeprefix(_DATASET_PREFIX)
    _keep_quiet()
    _keep_to_the_endpoint()
    with _hub_errors(source.uri, source.revision, ExitCode.DATA_INVALID):
        dataset, split = _load(repository, source, splits)
    names = class_names(dataset.features.to_dict())
    number = 0
    # As Arrow, or images and sounds in other columns would be decoded.
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for values in table.to_pylist():
            number += 1
            # Names say more than class numbers, and only names can be compared between two sources.
            yield Row(f"split {split} row {number}", with_names(without_invented_nulls(values), names))


def _load(repository: str, source: DataSource, splits: tuple[str, ...]) -> tuple[Any, str]:
    builder = _builder(repository, source)
    available = [str(name) for name in builder.config.data_files or builder.info.splits or ()]
    wanted = (source.split,) if source.split else splits
    split = next((name for name in wanted if _split_names(name).issubset(available)), None)
    if split is None:
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{source.uri}: no split {' or '.join(wanted)}; it has {', '.join(available)}",
            "set split to one of them",
        )
    builder.download_and_prepare()
    return builder.as_dataset(split=split), split


def _builder(repository: str, source: DataSource) -> Any:
    try:
        # Asked first, because `datasets` answers every trouble with the newest copy in its cache, of any revision.
        revision = huggingface_hub.HfApi().dataset_info(repository, revision=source.revision, timeout=30).sha
    except _UNREACHABLE as error:
        builder = None if isinstance(error, hub_errors.HfHubHTTPError) else _cached_builder(repository, source)
        if builder is None:
            raise
        return builder
    # With its prefix, or a folder of that name in the working directory would be read instead.
    builder = datasets.load_dataset_builder(f"{_DATASET_PREFIX}{repository}", source.subset, revision=revision)
    if builder.hash != revision:
        raise ConnectionError(f"revision {revision} could not be fetched")
    return builder


def _cached_builder(repository: str, source: DataSource) -> Any | None:
    """The data set as an earlier run left it in the cache, if that is the revision asked for."""
    config, was_offline = datasets.config, datasets.config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True  # or it would be asked for again and again, 23 seconds long
    try:
        builder = datasets.load_dataset_builder(f"{_DATASET_PREFIX}{repository}", source.subset)
    except Exception:
        return None
    finally:
        config.HF_HUB_OFFLINE = was_offline
    return builder if source.revision in (None, builder.hash) else None


def _split_names(expression: str) -> set[str]:
    """The splits in an expression such as "train[:10%]+validation"."""
    return {part.partition("[")[0].strip() for part in expression.split("+")}


@functools.cache
def _keep_to_the_endpoint() -> None:
    """Ask no host beside the hub, and tell the token to none.

    Others may be out of reach, and each is waited for in vain; and a data set's card could have any address of this
    network asked for, because `datasets` refuses foreign files only after it has looked for them.
    """
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # a request to a storage service for every data set
    datasets.config.USE_PARQUET_EXPORT = False  # one to the data set viewer, which mirrors of the hub do not have
    for protocol in set(fsspec.available_protocols()) - _PROTOCOLS:
        fsspec.register_implementation(protocol, _Elsewhere, clobber=True)
    huggingface_hub.set_client_factory(_make_client)


class _Elsewhere(fsspec.AbstractFileSystem):
    """Stands for every file system that is not the hub's: it cannot be opened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("the files of a data set are read from its own repository only, and its card names others")


def _make_client() -> Any:
    """The hub's HTTP client. It follows redirects, which lead to where the hub stores files, without the token.

    The library itself sends the token wherever the next page of a list is said to be.
    """
    client = default_client_factory()
    client.event_hooks["request"].append(_keep_token)
    return client


def _keep_token(request: Any) -> None:
    if _origin(urlsplit(str(request.url))) != _origin(urlsplit(hub_constants.ENDPOINT)):
        request.headers.pop("Authorization", None)


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)


def _keep_quiet() -> None:
    """Leave bars, and a line for every request, out of the log."""
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    logging.getLogger(hub_errors.HTTPError.__module__.partition(".")[0]).setLevel(logging.WARNING)


def _refuse_pickles(snapshot: Path, repository: str, source: ModelSource) -> None:
    """Raise TrainerError if the repository has weights, but none that are downloaded."""
    if any(snapshot.glob(f"*{weights.SUFFIX}")):
        return
    try:
        files = [Path(file.path) for file in huggingface_hub.get_cached_repo_tree(repository, revision=source.revision)]
    except hub_errors.CachedRepoTreeNotFoundError:
        return
    if pickles := sorted(str(file) for file in files if any(map(file.match, weights.PICKLES))):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"{source.uri}: the weights are pickles only ({', '.join(pickles[:3])}), which run code when read",
            "name a revision that has safetensors; converted ones are often offered as a pull request (refs/pr/1)",
        )


@contextmanager
def _hub_errors(uri: str, revision: str | None, code: ExitCode) -> Iterator[None]:
    """Turn what the libraries raise into TrainerError; `code` is for what the source itself lacks."""
    if not _TOKEN.fullmatch(huggingface_hub.get_token() or ""):
        # Found later, the HTTP client would tell all of it.
        raise TrainerError(
            ExitCode.CREDENTIALS_INVALID,
            f"{uri}: HF_TOKEN holds characters that no token has",
            "look for spaces, line breaks and quotes in the secret",
        )
    try:
        yield
    except (TrainerError, MemoryError):
        raise
    except Exception as error:
        causes = list(_causes(error))
        raise (
            _storage_error(causes, uri)
            or _access_error(causes, uri, revision, code)
            or _network_error(causes, uri)
            or _source_error(causes, uri, code)
        ) from None


def _storage_error(causes: list[BaseException], uri: str) -> TrainerError | None:
    errors = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if not errors & (_FULL | _REFUSED) and "enough disk space" not in str(causes[0]):
        return None
    refused = errors & _REFUSED
    return TrainerError(
        ExitCode.OUTPUT_REFUSED if refused else ExitCode.STORAGE_FULL,
        f"{uri}: {'not allowed to write' if refused else 'no space left'} in the hub's cache {hub_constants.HF_HOME}",
        "set HF_HOME to a directory with space that the trainer's user may write to",
    )


def _access_error(causes: list[BaseException], uri: str, revision: str | None, code: ExitCode) -> TrainerError | None:
    # Of a gated data set, `datasets` leaves no more than the word.
    is_gated = any(
        isinstance(cause, datasets.exceptions.DatasetNotFoundError) and "gated" in str(cause) for cause in causes
    )
    if is_gated or _has(causes, hub_errors.GatedRepoError):
        return _no_access(f"{uri}: its owner has to grant access")
    if _has(causes, hub_errors.RevisionNotFoundError):
        return TrainerError(code, f"{uri}: the hub has no revision {revision!r} of it", "check the revision")
    if _has(causes, hub_errors.RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError):
        return TrainerError(
            code,
            f"{uri}: the hub has no such repository, or it is a private one",
            "check owner and name; for a private one set HF_TOKEN (pod.envFromSecrets) to a token that may read it",
        )
    return _no_access(f"{uri}: the hub refuses access") if _statuses(causes) & {401, 403} else None


def _network_error(causes: list[BaseException], uri: str) -> TrainerError | None:
    if not _has(causes, *_UNREACHABLE) or _statuses(causes) & {400, 404}:
        return None
    return TrainerError(
        ExitCode.NETWORK_UNAVAILABLE,
        f"{uri}: the hub cannot be reached: {_one_line(causes[-1])}",
        "check the network, proxies (HTTPS_PROXY), and HF_ENDPOINT, which for pods the trainer's image sets",
    )


def _source_error(causes: list[BaseException], uri: str, code: ExitCode) -> TrainerError:
    if len(causes) > 1 and isinstance(causes[0], datasets.exceptions.DatasetGenerationError):
        return TrainerError(
            code,
            f"{uri}: its files cannot be read: {_one_line(causes[1])}",
            "name a subset or revision without that fault",
        )
    return TrainerError(code, f"{uri}: {_one_line(causes[-1])}", "check the name, the revision, and subset and split")


def _has(causes: list[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes)


def _statuses(causes: list[BaseException]) -> set[int | None]:
    """The HTTP statuses that the errors come from."""
    return {getattr(getattr(cause, "response", None), "status_code", None) for cause in causes}


def _no_access(message: str) -> TrainerError:
    has_token = huggingface_hub.get_token() is not None
    return TrainerError(
        ExitCode.CREDENTIALS_INVALID,
        f"{message}; {'the token in HF_TOKEN has none' if has_token else 'HF_TOKEN is not set'}",
        "accept its conditions on the hub, and set HF_TOKEN (pod.envFromSecrets) to a valid token that may read it",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
