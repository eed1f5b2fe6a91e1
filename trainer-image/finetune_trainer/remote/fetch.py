"""Downloads what a job's s3:// and https:// URIs name into its work directory: whole or absent, and once.

A run that starts again in the same work directory asks whether it is still the same, and downloads only what is not.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.v1alpha1.sources import DataSource, ModelSource
from finetune_trainer import storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.remote import https, s3
from finetune_trainer.stop import StopFlag

FOLDER = "downloads"
_CONTENT, _RECORD = "content", "source.json"
_NAME_LENGTH = 100


def is_needed(run: Run) -> bool:
    """Whether the spec names anything by s3:// or https://."""
    return any(_is_remote(source) for _, source in run.spec.sources())


def fetch(run: Run, note: Callable[[str], None], stop: StopFlag) -> dict[str, str]:
    """Download all that the spec names by s3:// and https://; where it lies, by URI. Raises TrainerError."""
    found: dict[str, str] = {}
    for field, source in run.spec.sources():
        if not _is_remote(source) or source.uri in found:
            continue
        try:
            found[source.uri] = str(_fetch(source, Path(run.work_dir, FOLDER), note, stop))
        except TrainerError as error:
            told = error.message if source.uri in error.message else f"{source.uri}: {error.message}"
            raise TrainerError(error.code, f"{field}.uri: {told}", error.hint) from None
    return found


@contextmanager
def named_by_uri(downloads: Mapping[str, str]) -> Iterator[None]:
    """Let errors name what was downloaded as the manifest does, not by where it lies."""
    try:
        yield
    except TrainerError as error:
        for uri, path in downloads.items():
            error.message, error.hint = (text.replace(path, uri) for text in (error.message, error.hint))
        raise


def _is_remote(source: ModelSource | DataSource) -> bool:
    return source.uri.startswith((s3.SCHEME, https.SCHEME))


def _fetch(source: ModelSource | DataSource, folder: Path, note: Callable[[str], None], stop: StopFlag) -> Path:
    """Where the model's directory or the data's file lies, downloaded if need be."""
    place = folder / hashlib.sha256(f"{type(source).__name__} {source.uri}".encode()).hexdigest()[:16]
    known = _known_version(place)
    if isinstance(source, ModelSource):
        _fetch_model(source.uri, place, known, note, stop)
        return place / _CONTENT
    path = place / _CONTENT / _file_name(source.uri)
    if source.uri.startswith(https.SCHEME):
        _fetch_web_file(source.uri, place, known, note, stop)
    else:
        _fetch_object(source.uri, place, known, note, stop)
    return path


def _fetch_model(uri: str, place: Path, known: str, note: Callable[[str], None], stop: StopFlag) -> None:
    remote = s3.Place(uri, ExitCode.MODEL_INVALID)
    files = remote.files(s3.model_files(remote))
    _keep(uri, place, known, files, partial(remote.download, files, stop=stop), note)


def _fetch_object(uri: str, place: Path, known: str, note: Callable[[str], None], stop: StopFlag) -> None:
    remote = s3.Place(uri, ExitCode.DATA_INVALID)
    file = remote.file()
    if file is None:
        below = sorted(remote.names())
        such = f", such as {below[0]}" if below else ""
        raise TrainerError(
            ExitCode.DATA_INVALID,
            f"{uri}: {'is a folder' if below else 'there is no such object'}",
            f"name the file in it{such}" if below else "check bucket and path, and AWS_ENDPOINT_URL",
        )
    name = _file_name(uri)
    _keep(uri, place, known, [file], lambda content: remote.download_as(file, content / name, stop), note)


def _fetch_web_file(uri: str, place: Path, known: str, note: Callable[[str], None], stop: StopFlag) -> None:
    """A web server says whether the file has changed in the very answer that holds it."""
    remote, name = https.WebFile(uri, stop), _file_name(uri)

    def download(content: Path) -> str:
        version = remote.download(content / name, known)
        if version is None:
            raise _Unchanged
        note(f"downloaded {uri} ({_megabytes((content / name).stat().st_size)})")
        return version

    try:
        _write(place, uri, download)
    except _Unchanged:
        note(f"{uri} is here already")


class _Unchanged(Exception):
    """What is there is still the same."""


def _keep(
    uri: str,
    place: Path,
    known: str,
    files: list[s3.RemoteFile],
    download: Callable[[Path], None],
    note: Callable[[str], None],
) -> None:
    """Let files of an object store be there, in the versions that were seen."""
    version = json.dumps([[file.name, file.size, file.version] for file in files])
    if version == known:
        note(f"{uri} is here already")
        return
    size = sum(file.size for file in files)
    place.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(place.parent).free) < size:
        raise TrainerError(
            ExitCode.STORAGE_FULL,
            f"{uri}: has {_megabytes(size)}, and {_megabytes(free)} are free in the work directory",
            "raise resources.ephemeralStorage, or use an output on a larger claim: the work directory is there",
        )
    note(f"downloading {uri} ({len(files)} files, {_megabytes(size)})")

    def fill(content: Path) -> str:
        download(content)
        return version

    _write(place, uri, fill)


def _write(place: Path, uri: str, download: Callable[[Path], str]) -> None:
    """Let `download` put files into a place, and note the version that it returns beside them: whole or not at all."""

    def fill(directory: Path) -> None:
        (directory / _CONTENT).mkdir()
        version = download(directory / _CONTENT)
        storage.write_json(directory / _RECORD, {"uri": uri, "version": version})

    storage.write_directory(place, fill)


def _known_version(place: Path) -> str:
    """The version of what is there, "" when there is nothing whole."""
    try:
        return str(json.loads((place / _RECORD).read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def _file_name(uri: str) -> str:
    """What the file is called here; its ending tells the format."""
    name = uri.partition("://")[2].partition("/")[2].rpartition("/")[2]
    if not name or name == ".":
        raise TrainerError(ExitCode.DATA_INVALID, f"{uri}: names no file", "name the file of rows, with its ending")
    return name[-_NAME_LENGTH:]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
