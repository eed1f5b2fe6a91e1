"""Build the programs of a Go module once, and keep them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PROGRESS_SECONDS = 30.0


class BinariesUnavailableError(RuntimeError):
    """There are no programs and no Go to build them with."""


class BuildFailedError(RuntimeError):
    """The Go build ended with an error."""


@dataclass(frozen=True)
class Recipe:
    """What is built, and from what."""

    what: str
    """As people are told."""
    module: Path
    """The folder with go.mod; what it requires is pinned there."""
    package: str
    program: str
    linker_flags: str
    links: Sequence[str] = ()
    """Further names of the program, one that looks at the name it was called by."""

    def source_hash(self) -> str:
        """What the build depends on."""
        digest = hashlib.sha256()
        for path in sorted(self.module.glob("*.*")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]


def cache() -> Path:
    """Where what is made once is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator" / "testbed"


def required_version(module: Path, name: str) -> str:
    """The version of another module that a module's go.mod pins."""
    text = (module / "go.mod").read_text(encoding="utf-8")
    match = re.search(rf"^(?:require)?\s*{re.escape(name)} (v\S+)", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"{module / 'go.mod'} does not require {name}")
    return match[1]


def missing_from(folder: Path, names: Sequence[str]) -> list[str]:
    """Which programs are not in a folder."""
    return [name for name in names if not os.access(folder / name, os.X_OK)]


def build_once(recipe: Recipe, name: str, without_go: str) -> Path:
    """The folder of that name with the programs; of several processes one builds, at most once.

    Raises BuildFailedError, and BinariesUnavailableError with the words for a machine that has no Go.
    """
    folder = cache() / name
    names = recipe.links or (recipe.program,)  # a link is usable only with the program behind it
    if not missing_from(folder, names):
        return folder
    go = shutil.which("go")
    if go is None:
        raise BinariesUnavailableError(without_go)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock"), recipe.what):
        if missing_from(folder, names):
            _build(go, recipe, folder)
    return folder


def build_program(what: str, program: str, name: str) -> Path:
    """A program whose main.go is in the folder of its name beside this file, built once; `name` is the module it is of.

    Raises BinariesUnavailableError, BuildFailedError.
    """
    folder = Path(__file__).parent / program
    recipe = Recipe(f"{what} {required_version(folder, name)}", folder, ".", program, "-s -w")
    without_go = f"no {what}: install Go so that it can be built"
    return build_once(recipe, f"{program}-{recipe.source_hash()}", without_go) / program


@contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that builds {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(go: str, recipe: Recipe, folder: Path) -> None:
    """Build into a folder beside the final one, then rename it into place."""
    started = time.monotonic()
    _say(f"building {recipe.what} with {go}: many minutes the first time, seconds later")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as name:
        scratch = Path(name)
        output = scratch / "bin"
        output.mkdir()
        with (scratch / "build.log").open("w+b") as log:
            _run_go(go, recipe, output / recipe.program, log, started)
        for link in recipe.links:
            (output / link).symlink_to(recipe.program)
        # What is there lacks a program, or nobody would build.
        shutil.rmtree(folder, ignore_errors=True)
        output.rename(folder)
    _say(f"built in {time.monotonic() - started:.0f} s: {folder}")


def _run_go(go: str, recipe: Recipe, output: Path, log: IO[bytes], started: float) -> None:
    command = [go, "build", "-trimpath", "-buildvcs=false"]
    command += ["-ldflags", recipe.linker_flags, "-o", str(output), recipe.package]
    # No C compiler is needed, and no go.work above this folder interferes.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    with subprocess.Popen(command, cwd=recipe.module, env=environment, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            while _still_running(process):
                _say(f"still building {recipe.what} ({time.monotonic() - started:.0f} s)")
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        log.seek(0)
        tail = log.read().decode(errors="replace")[-4000:]
        raise BuildFailedError(f"{' '.join(command)} in {recipe.module} ended with {process.returncode}:\n{tail}")


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=PROGRESS_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _say(message: str) -> None:
    print(f"testbed: {message}", file=sys.stderr, flush=True)
