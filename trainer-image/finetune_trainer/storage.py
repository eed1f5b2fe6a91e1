"""Writes directories that are whole or absent: temporary name, fsync, manifest with checksums, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

MANIFEST = "finetune-manifest.json"
_TEMPORARY_PREFIX = ".incomplete-"


class NotWhole(Exception):
    """A directory that is not what its manifest says; the message says how."""


def write_directory(target: Path, fill: Callable[[Path], None]) -> None:
    """
    Make `target` with the files that `fill` writes, or leave everything as it was.

    An existing `target` is replaced. Raises TrainerError (STORAGE_FULL) when the disk is full.
    """
    temporary = target.parent / f"{_TEMPORARY_PREFIX}{target.name}"
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            fill(temporary)
            write_json(temporary / MANIFEST, {"files": _fingerprints(temporary)})
            for path in _files(temporary):
                _fsync(path)
            for directory in (path for path in temporary.rglob("*") if path.is_dir()):
                _fsync(directory)
            _fsync(temporary)
            _replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_directory(directory: Path) -> None:
    """Raise NotWhole unless every file is there with the size and SHA-256 of the manifest."""
    try:
        expected = json.loads((directory / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise NotWhole("no valid manifest") from None
    for name, entry in expected.items():
        path = directory / name
        if not path.is_file():
            raise NotWhole(f"{name} is missing")
        if path.stat().st_size != entry["bytes"]:
            raise NotWhole(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        if _sha256(path) != entry["sha256"]:
            raise NotWhole(f"{name} has another SHA-256 than was written")


def digest(directory: Path) -> str:
    """One digest over a written directory: of its manifest, which names every file with its SHA-256."""
    return f"sha256:{_sha256(directory / MANIFEST)}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON; NaN and infinity are an error."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def replace_file(path: Path, text: str) -> None:
    """Replace a small file at once: a reader sees the old text or the new."""
    with storage_errors(path):
        temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
        temporary.write_text(text, encoding="utf-8")
        _fsync(temporary)
        temporary.replace(path)


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Turn "no space left" into a TrainerError; safetensors tells it in its own words."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error) or "No space left" in str(error):
            raise TrainerError(
                ExitCode.STORAGE_FULL,
                f"{place}: no space left on the device",
                "free space or enlarge the volume; the last good checkpoint is kept and the next run resumes from it",
            ) from None
        if code in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise TrainerError(
                ExitCode.OUTPUT_REFUSED, f"{place}: {os.strerror(code)}", "let the trainer's user write there"
            ) from None
        raise


def _replace(temporary: Path, target: Path) -> None:
    if target.exists():
        # A directory cannot be renamed over another; the old one goes aside first and is removed last.
        old = target.parent / f"{_TEMPORARY_PREFIX}old-{target.name}"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old)
    else:
        temporary.rename(target)
    _fsync(target.parent)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _fingerprints(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in _files(directory)
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
