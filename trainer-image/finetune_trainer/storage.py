"""Writes directories that are whole or absent: temporary name, fsync, manifest with checksums, rename."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

MANIFEST = "finetune-manifest.json"
_TEMPORARY_PREFIX = ".incomplete-"
_ASIDE_PREFIX = ".replaced-"
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class NotWhole(Exception):
    """A directory that is not what its manifest says; the message says how."""


def write_directory(target: Path, fill: Callable[[Path], None]) -> None:
    """Make `target` with the files that `fill` writes, or leave everything as it was.

    An existing `target` is replaced. Raises TrainerError (STORAGE_FULL) when the disk is full.
    """
    temporary = target.parent / f"{_TEMPORARY_PREFIX}{target.name}"
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        tidy(target.parent, target.name)
        try:
            temporary.mkdir()
            fill(temporary)
            write_json(temporary / MANIFEST, {"files": _fingerprints(temporary)})
            # safetensors writes files that their owner alone may read, but others are to serve the model.
            mode = stat.S_IMODE((temporary / MANIFEST).stat().st_mode)
            for path in _files(temporary):
                path.chmod(mode)
                _fsync(path)
            for directory in (path for path in temporary.rglob("*") if path.is_dir()):
                _fsync(directory)
            _fsync(temporary)
            _replace(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def check_directory(directory: Path, endings: tuple[str, ...] = ("",)) -> None:
    """Raise NotWhole unless every file (with such an ending) is there with the size and SHA-256 of the manifest."""
    for name, (size, sha256) in _manifest(directory).items():
        if not name.endswith(endings):
            continue
        path = directory / name
        if not path.is_file():
            raise NotWhole(f"{name} is missing")
        if path.stat().st_size != size:
            raise NotWhole(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _sha256(path) != sha256:
            raise NotWhole(f"{name} has another SHA-256 than was written")


def foreign_files(directory: Path) -> list[str]:
    """Files that are in a directory but not in its manifest; all of them when it has no valid one."""
    try:
        known = {MANIFEST, *_manifest(directory)}
    except NotWhole:
        known = set()
    return [name for path in _files(directory) if (name := path.relative_to(directory).as_posix()) not in known]


def files_of_manifest(content: bytes) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file that a manifest names. Raises NotWhole."""
    try:
        files = json.loads(content)["files"]
        found = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NotWhole("no valid manifest") from None
    if any(path.is_absolute() or ".." in path.parts for path in map(PurePosixPath, found)):
        raise NotWhole("its manifest names files elsewhere")  # it came with the files, and would have them read
    return found


def tidy(directory: Path, name: str | None = None) -> None:
    """Clear away what killed writes (of one name, or of any) left behind; what they had moved aside is put back."""
    pattern = glob.escape(name) if name else "*"
    for aside in directory.glob(f"{_ASIDE_PREFIX}{pattern}"):
        target = directory / aside.name.removeprefix(_ASIDE_PREFIX)
        if target.exists():
            remove(aside)
        else:
            aside.rename(target)
    for unfinished in directory.glob(f"{_TEMPORARY_PREFIX}{pattern}"):
        remove(unfinished)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def digest(directory: Path) -> str:
    """One digest over a written directory: of its manifest, which names every file with its SHA-256."""
    return f"sha256:{_sha256(directory / MANIFEST)}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON; NaN and infinity are an error."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def replace_file(path: Path, text: str) -> None:
    """Replace a small file at once: a reader sees the old text or the new."""
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}")
    with storage_errors(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            _fsync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Turn "no space left" and "not allowed" into a TrainerError."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        code = _error_number(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise TrainerError(
                ExitCode.STORAGE_FULL,
                f"{place}: no space left on the device",
                "free space or enlarge the volume; the last good checkpoint is kept and the next run resumes from it",
            ) from None
        if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise TrainerError(ExitCode.OUTPUT_REFUSED, f"{place}: {os.strerror(code)}", how_to_allow(code)) from None
        raise


def how_to_allow(code: int) -> str:
    """What lets a directory be written whose refusal has this errno."""
    return "mount its volume for writing" if code == errno.EROFS else "let the trainer's user write there"


def _error_number(error: Exception) -> int | None:
    """The errno of an error; safetensors and tokenizers, which are written in Rust, only have it in their words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _RUST_OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def _manifest(directory: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file that was written. Raises NotWhole."""
    try:
        return files_of_manifest((directory / MANIFEST).read_bytes())
    except OSError:
        raise NotWhole("no valid manifest") from None


def _replace(temporary: Path, target: Path) -> None:
    if target.exists():
        # A directory cannot be renamed over another; the old one goes aside first and is removed last.
        old = target.parent / f"{_ASIDE_PREFIX}{target.name}"
        target.rename(old)
        try:
            temporary.rename(target)
        except BaseException:
            old.rename(target)
            raise
        with contextlib.suppress(OSError):  # what stays is tidied away by the next write
            remove(old)
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


def add_files(digest: hashlib._Hash, paths: Iterable[Path]) -> None:
    """Take the contents of files into a digest, in this order."""
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
