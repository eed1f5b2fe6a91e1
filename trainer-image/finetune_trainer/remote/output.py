"""Brings a finished model into an object store; what makes it loadable comes last, so that nobody loads half of it.

The manifest comes first: it names all files of ours, also where an upload was cut off, so the next one may go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.remote import s3
from finetune_trainer.stop import StopFlag
from finetune_trainer.watchdog import beat

FOLDER = "output"
PATIENCE_SECONDS = 900.0
"""How long an upload is tried again; hours of training may hang on it."""
_PAUSES = (1.0, 5.0, 15.0, 60.0)
_PROBE = ".finetune-write-check"
_MAKE_LOADABLE = ("config.json", "adapter_config.json")


def is_remote(run: Run) -> bool:
    """Whether the model goes into an object store."""
    return run.spec.output.uri.startswith(s3.SCHEME)


def directory(run: Run) -> Path:
    """Where such a model is written and checked before it is uploaded."""
    return Path(run.work_dir, FOLDER)


def check(uri: str) -> None:
    """Raise TrainerError unless the model may be put there: nothing or an earlier output is there; it is writable."""
    with _field_named():
        _check(uri)


def upload(source: Path, uri: str, note: Callable[[str], None], stop: StopFlag) -> None:
    """Put the files of a directory there in place of an earlier output. Raises TrainerError."""
    with _field_named():
        _upload_patiently(source, uri, note, stop)


@contextmanager
def _field_named() -> Iterator[None]:
    try:
        yield
    except TrainerError as error:
        error.message = f"spec.output.uri: {error.message}"
        raise


def _check(uri: str) -> None:
    place = s3.Place(uri, ExitCode.OUTPUT_REFUSED)
    if place.is_bucket:
        raise TrainerError(
            ExitCode.OUTPUT_REFUSED,
            f"{uri}: is a whole bucket, and what is in the output is replaced",
            "name a folder in it",
        )
    names = set(place.names(recursive=True))
    if foreign := sorted(names - _ours(place, names) - {_PROBE}):
        raise TrainerError(
            ExitCode.OUTPUT_REFUSED,
            f"{uri}: holds files that were not written by a FineTuneJob: {', '.join(foreign[:3])}"
            + (", ..." if len(foreign) > 3 else ""),
            "name another folder, or empty it yourself",
        )
    place.check_writable(_PROBE)


def _upload_patiently(source: Path, uri: str, note: Callable[[str], None], stop: StopFlag) -> None:
    ends_at, attempt = time.monotonic() + PATIENCE_SECONDS, 0
    while True:
        try:
            return _upload(source, uri, stop)
        except TrainerError as error:
            if error.code != ExitCode.NETWORK_UNAVAILABLE or time.monotonic() > ends_at:
                raise
            note(f"{error.message}; the model is kept, and it is tried again")
        stop.wait(_PAUSES[min(attempt, len(_PAUSES) - 1)], f"the model was being uploaded to {uri}")
        beat()
        attempt += 1


def _upload(source: Path, uri: str, stop: StopFlag) -> None:
    place = s3.Place(uri, ExitCode.OUTPUT_REFUSED)
    sizes = {path.relative_to(source).as_posix(): path.stat().st_size for path in source.rglob("*") if path.is_file()}
    there = set(place.names(recursive=True))
    old = _ours(place, there) & there
    for name in (*(name for name in _MAKE_LOADABLE if name in old), *sorted(old - set(sizes) - set(_MAKE_LOADABLE))):
        place.remove(name)
    for name in sorted(sizes, key=_turn):
        place.upload(source / name, name, stop)
    stored = place.names(recursive=True)
    if wrong := sorted(name for name, size in sizes.items() if stored.get(name) != size):
        raise TrainerError(
            ExitCode.NETWORK_UNAVAILABLE, f"{uri}: {wrong[0]} was not stored as it was sent", "start the job again"
        )


def _turn(name: str) -> tuple[int, str]:
    """When a file's turn is."""
    if name == storage.MANIFEST:
        return 0, name
    return (2, name) if name in _MAKE_LOADABLE else (1, name)


def _ours(place: s3.Place, names: set[str]) -> set[str]:
    """What an earlier output's manifest says is of it, with the manifest."""
    if storage.MANIFEST not in names:
        return set()
    try:
        return {storage.MANIFEST, *storage.files_of_manifest(place.read_small(storage.MANIFEST))}
    except storage.NotWhole:
        return set()
