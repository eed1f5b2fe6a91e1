"""Models and data sets of a hub: what is downloaded, what is refused in which words; no other host is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_trainer.model_checks import check_directory
from hubserver.server import HubServer
from trainer.conftest import ROOT
from trainer.data_fixtures import write, write_jsonl

TOKEN = {"HF_TOKEN": "hf_only_for_this_test"}
FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["negative", "positive"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "List"},
}
CALLS: list[dict[str, Any]] = [{"messages": [{"call": {"a": 1}}]}, {"messages": [{"call": {"b": "x"}}]}]
CARD = """---
configs:
- config_name: english
  data_files: [{split: train, path: en/train.jsonl}, {split: test, path: en/test.jsonl}]
- config_name: german
  data_files: [{split: train, path: de/train.jsonl}]
dataset_info:
- config_name: english
  features: [{name: text, dtype: string}, {name: label, dtype: {class_label: {names: {'0': bad, '1': good}}}}]
- config_name: german
  features: [{name: text, dtype: string}, {name: label, dtype: string}]
---
"""


class Reader:
    """A process that reads from the hub; it imports the libraries once."""

    def __init__(self, endpoint: str, home: Path, cache: Path | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
        environment |= {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache or home / "huggingface"),
            "PYTHONPATH": str(ROOT / "tests"),
        }
        self.home = home
        self.log = home / "log"
        self.answers: list[str] = []
        self._log_file = self.log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hubserver.reader"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log_file,
            env=environment,
            cwd=home,
            text=True,
        )

    def ask(self, call: str, uri: str, environment: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        splits = fields.pop("splits", "train")
        request = {"call": call, "source": {"uri": uri, **fields}, "environment": environment or {}, "splits": splits}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self.log.read_text()
        self.answers.append(line)
        answer: dict[str, Any] = json.loads(line)
        assert set(answer["hosts"]) <= {"127.0.0.1"}, "a host beside the hub was asked"
        assert "crash" not in answer, answer
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._log_file.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    for name in ("tiny", "gated", "private", "busy", "unseen"):
        make_model_repository(root / "models" / "owner" / name, tiny_bert)
    make_model_repository(root / "models" / "owner" / "pickled", tiny_bert)
    (root / "models" / "owner" / "pickled" / "model.safetensors").unlink()
    for name in ("lines", "gated", "busy", "unseen"):
        make_lines_repository(root / "datasets" / "owner" / name, "first")
    make_lines_repository(root / "datasets" / "owner" / "lines@v2", "second")
    make_parquet_repository(root / "datasets" / "owner" / "classes")
    make_subsets_repository(root / "datasets" / "owner" / "subsets")
    calls = root / "datasets" / "owner" / "calls" / "train.parquet"
    calls.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(CALLS), calls)
    broken = root / "datasets" / "owner" / "broken"
    broken.mkdir()
    write(broken / "train.jsonl", '{"text": "a", "label": "b"}\n{"text": \n')
    uneven = root / "datasets" / "owner" / "uneven"
    uneven.mkdir()
    write_jsonl(uneven / "train-1.jsonl", [{"text": "a", "label": "b"}])
    write_jsonl(uneven / "train-2.jsonl", [{"text": "a", "label": "b", "other": 1}])
    (root / "datasets" / "owner" / "none").mkdir()
    write(root / "datasets" / "owner" / "none" / "README.md", "# Nothing here\n")
    server = HubServer(root, gated=frozenset({"owner/gated"}), private=frozenset({"owner/private"}))
    server.busy = frozenset({"owner/busy"})
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def reader(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    process = Reader(hub.endpoint, tmp_path_factory.mktemp("reader"))
    yield process
    process.stop()


@pytest.fixture(autouse=True)
def forget_requests(hub: HubServer) -> None:
    hub.requests.clear()


def make_model_repository(directory: Path, model: Path) -> None:
    shutil.copytree(model, directory)
    for name in ("pytorch_model.bin", "modeling_own.py", "tf_model.h5", "onnx/model.onnx", "onnx/config.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        write(directory / name, "not to be downloaded")
    write(directory / "consolidated.safetensors", "the same weights for another program")
    write(directory / "README.md", "# A model\n")


def make_lines_repository(directory: Path, what: str) -> None:
    directory.mkdir(parents=True)
    for split, count in (("train", 5), ("validation", 3), ("test", 2)):
        rows = [{"text": f"{what} {split} {number}", "label": "ab"[number % 2]} for number in range(count)]
        write_jsonl(directory / f"{split}.jsonl", rows)


def make_parquet_repository(directory: Path) -> None:
    directory.mkdir()
    tags = pa.array([[0, 1], [], [1, -1]], pa.list_(pa.int64()))
    texts = ["fine", "poor", "unknown"]
    table = pa.table({"text": texts, "label": pa.array([1, 0, -1], pa.int64()), "tags": tags})
    described = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    (directory / "data").mkdir()
    pq.write_table(described, directory / "data" / "train-00000-of-00001.parquet")


def make_subsets_repository(directory: Path) -> None:
    for folder, split, rows in (
        ("en", "train", [{"text": "fine", "label": 1}, {"text": "poor", "label": 0}]),
        ("en", "test", [{"text": "well", "label": 1}]),
        ("de", "train", [{"text": "gut", "label": "gut"}]),
    ):
        (directory / folder).mkdir(parents=True, exist_ok=True)
        write_jsonl(directory / folder / f"{split}.jsonl", rows)
    write(directory / "README.md", CARD)


class TestModel:
    def test_only_safetensors_and_texts_are_downloaded(self, hub: HubServer, reader: Reader) -> None:
        answer = reader.ask("model", "hf://owner/tiny")
        assert answer["files"] == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        assert hub.downloads() == set(answer["files"])
        check_directory(Path(answer["directory"]))

    def test_a_second_time_nothing_is_downloaded(self, hub: HubServer, reader: Reader) -> None:
        first = reader.ask("model", "hf://owner/tiny")
        hub.requests.clear()
        assert reader.ask("model", "hf://owner/tiny") == first | {"hosts": []}
        assert not hub.downloads()

    def test_pickles_only(self, hub: HubServer, reader: Reader) -> None:
        assert refused(reader, "MODEL_INVALID", "model", "hf://owner/pickled") == (
            "hf://owner/pickled: the weights are pickles only (pytorch_model.bin), which run code when read "
            "(name a revision that has safetensors; converted ones are often offered as a pull request (refs/pr/1))"
        )
        assert "pytorch_model.bin" not in hub.downloads()

    def test_not_found(self, reader: Reader) -> None:
        for token in ({}, TOKEN):
            assert refused(reader, "MODEL_INVALID", "model", "hf://owner/absent", token) == (
                "hf://owner/absent: the hub has no such repository, or it is a private one (check owner and name; "
                "for a private one set HF_TOKEN (pod.envFromSecrets) to a token that may read it)"
            )

    def test_revision_not_found(self, reader: Reader) -> None:
        told = refused(reader, "MODEL_INVALID", "model", "hf://owner/tiny", revision="v9")
        assert told == "hf://owner/tiny: the hub has no revision 'v9' of it (check the revision)"

    def test_gated(self, reader: Reader) -> None:
        told = refused(reader, "CREDENTIALS_INVALID", "model", "hf://owner/gated")
        assert told.startswith("hf://owner/gated: its owner has to grant access; HF_TOKEN is not set (")
        told = refused(reader, "CREDENTIALS_INVALID", "model", "hf://owner/gated", TOKEN)
        assert told.startswith("hf://owner/gated: its owner has to grant access; the token in HF_TOKEN has none (")

    def test_private(self, reader: Reader) -> None:
        assert "or it is a private one" in refused(reader, "MODEL_INVALID", "model", "hf://owner/private")
        assert "model.safetensors" in reader.ask("model", "hf://owner/private", TOKEN)["files"]

    def test_a_token_that_is_none(self, reader: Reader) -> None:
        told = refused(reader, "CREDENTIALS_INVALID", "model", "hf://owner/unseen", {"HF_TOKEN": "hf_wrong"})
        assert told.startswith("hf://owner/unseen: the hub refuses access; the token in HF_TOKEN has none")

    def test_the_hub_is_busy(self, reader: Reader) -> None:
        told = refused(reader, "NETWORK_UNAVAILABLE", "model", "hf://owner/busy")
        assert told.startswith("hf://owner/busy: the hub cannot be reached: Server error '503 Service Unavailable'")

    def test_the_hub_is_down(self, hub: HubServer, reader: Reader) -> None:
        known = reader.ask("model", "hf://owner/tiny")
        hub.stop()
        try:
            told = refused(reader, "NETWORK_UNAVAILABLE", "model", "hf://owner/unseen")
            assert told.startswith("hf://owner/unseen: the hub cannot be reached: ")
            assert "Connection refused (check the network, proxies (HTTPS_PROXY), and HF_ENDPOINT, " in told
            assert reader.ask("model", "hf://owner/tiny")["files"] == known["files"]
        finally:
            hub.start()


def test_no_space_in_the_cache(hub: HubServer, tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    cache = small_disk(96)
    reader = Reader(hub.endpoint, tmp_path, cache)
    try:
        told = refused(reader, "STORAGE_FULL", "model", "hf://owner/tiny")
    finally:
        reader.stop()
    assert told.startswith(f"hf://owner/tiny: no space left in the hub's cache {cache} (set HF_HOME to a directory")


class TestDataset:
    def test_splits_by_default(self, reader: Reader) -> None:
        assert rows(reader, "lines") == [
            [f"split train row {number}", {"text": f"first train {number - 1}", "label": "ba"[number % 2]}]
            for number in range(1, 6)
        ]
        assert [place for place, _ in rows(reader, "lines", splits="evaluation")] == [
            f"split validation row {number}" for number in range(1, 4)
        ]
        assert texts(reader, "subsets", subset="english", splits="evaluation") == ["well"]  # no validation, so test

    def test_split_that_is_asked_for(self, reader: Reader) -> None:
        assert texts(reader, "lines", split="test") == ["first test 0", "first test 1"]
        assert texts(reader, "lines", split="train[1:3]+test[:1]") == ["first train 1", "first train 2", "first test 0"]

    def test_split_that_is_missing(self, hub: HubServer, reader: Reader) -> None:
        uri = "hf://datasets/owner/lines"
        assert refused(reader, "DATA_INVALID", "dataset", uri, split="dev") == (
            f"{uri}: no split dev; it has train, validation, test (set split to one of them)"
        )
        assert "no split train+dev; it has" in refused(reader, "DATA_INVALID", "dataset", uri, split="train+dev")
        uri = "hf://datasets/owner/classes"
        assert refused(reader, "DATA_INVALID", "dataset", uri, splits="evaluation") == (
            f"{uri}: no split validation or test; it has train (set split to one of them)"
        )
        assert not hub.downloads(), "rows are downloaded only when it is clear that they are wanted"

    def test_names_of_classes_are_the_labels(self, reader: Reader) -> None:
        labels = [values["label"] for _, values in rows(reader, "classes")]
        assert labels == ["positive", "negative", None]
        assert [values["tags"] for _, values in rows(reader, "classes")] == [["O", "B-X"], [], ["B-X", None]]
        assert [values["label"] for _, values in rows(reader, "subsets", subset="english")] == ["good", "bad"]

    def test_structs_have_no_fields_of_other_rows(self, reader: Reader) -> None:
        assert [values for _, values in rows(reader, "calls")] == CALLS

    def test_subsets(self, reader: Reader) -> None:
        assert texts(reader, "subsets", subset="german") == ["gut"]
        told = refused(reader, "DATA_INVALID", "dataset", "hf://datasets/owner/subsets", subset="french")
        assert "english" in told
        assert "german" in told
        assert "'french'" in told
        told = refused(reader, "DATA_INVALID", "dataset", "hf://datasets/owner/subsets")
        assert "Config name is missing" in told
        assert "english" in told

    def test_revisions(self, reader: Reader) -> None:
        assert texts(reader, "lines", revision="v2")[0] == "second train 0"
        assert texts(reader, "lines", revision="main")[0] == "first train 0"
        uri = "hf://datasets/owner/lines"
        assert refused(reader, "DATA_INVALID", "dataset", uri, revision="v9") == (
            f"{uri}: the hub has no revision 'v9' of it (check the revision)"
        )

    def test_a_folder_of_that_name_is_not_read_instead(self, reader: Reader) -> None:
        folder = reader.home / "owner" / "lines"
        folder.mkdir(parents=True)
        write_jsonl(folder / "train.jsonl", [{"text": "from the working directory", "label": "a"}])
        assert texts(reader, "lines")[0] == "first train 0"

    def test_not_found(self, reader: Reader) -> None:
        for token in ({}, TOKEN):
            told = refused(reader, "DATA_INVALID", "dataset", "hf://datasets/owner/absent", token)
            assert told.startswith("hf://datasets/owner/absent: the hub has no such repository, or it is a private one")

    def test_gated(self, reader: Reader) -> None:
        told = refused(reader, "CREDENTIALS_INVALID", "dataset", "hf://datasets/owner/gated")
        assert told.startswith("hf://datasets/owner/gated: its owner has to grant access; HF_TOKEN is not set (")

    def test_without_data(self, reader: Reader) -> None:
        told = refused(reader, "DATA_INVALID", "dataset", "hf://datasets/owner/none")
        assert told.startswith("hf://datasets/owner/none: ")

    def test_broken_rows(self, reader: Reader) -> None:
        assert refused(reader, "DATA_INVALID", "dataset", "hf://datasets/owner/broken") == (
            "hf://datasets/owner/broken: its files cannot be read: JSON parse error: Invalid value. in row 1 "
            "(name a subset or revision without that fault)"
        )

    def test_files_of_different_columns(self, reader: Reader) -> None:
        told = refused(reader, "DATA_INVALID", "dataset", "hf://datasets/owner/uneven")
        assert told.startswith("hf://datasets/owner/uneven: its files cannot be read: Couldn't cast")
        assert "because column names don't match" in told

    def test_the_hub_is_busy(self, reader: Reader) -> None:
        told = refused(reader, "NETWORK_UNAVAILABLE", "dataset", "hf://datasets/owner/busy")
        assert "503" in told

    def test_the_hub_is_down(self, hub: HubServer, reader: Reader) -> None:
        known, second = rows(reader, "lines"), rows(reader, "lines", revision="v2")
        other = hub.find("datasets", "owner/lines", "v2", "").commit
        commit = hub.find("datasets", "owner/lines", "main", "").commit
        rows(reader, "classes")
        hub.stop()
        try:
            told = refused(reader, "NETWORK_UNAVAILABLE", "dataset", "hf://datasets/owner/unseen")
            assert told.startswith("hf://datasets/owner/unseen: the hub cannot be reached: ")
            assert "Connection refused (check the network, proxies (HTTPS_PROXY), and HF_ENDPOINT, " in told
            assert texts(reader, "classes") == ["fine", "poor", "unknown"]
            pinned = {revision: read_offline(reader, revision) for revision in (commit, other, "v2", "0" * 40)}
        finally:
            hub.start()
        # Which of two cached revisions `datasets` picks is its choice; another than asked for is never taken.
        found = {revision for revision, read in pinned.items() if read is not None}
        assert len(found) == 1
        assert found < {commit, other}
        assert pinned[commit] in (known, None)
        assert pinned[other] in (second, None)


@pytest.mark.security(19)
def test_the_token_is_sent_and_never_told(hub: HubServer, reader: Reader) -> None:
    hub.authorizations.clear()
    secret = {"HF_TOKEN": "hf_a_secret_that_is_wrong"}
    for token in (TOKEN, secret):
        reader.ask("model", "hf://owner/private", token)
        reader.ask("model", "hf://owner/gated", token)
        reader.ask("model", "hf://owner/absent", token)
        reader.ask("dataset", "hf://datasets/owner/classes", token)
        reader.ask("dataset", "hf://datasets/owner/absent", token, revision="v1")
    assert hub.authorizations == {f"Bearer {token['HF_TOKEN']}" for token in (TOKEN, secret)}
    told = reader.log.read_text() + "".join(reader.answers)
    assert TOKEN["HF_TOKEN"] not in told
    assert secret["HF_TOKEN"] not in told


@pytest.mark.parametrize("token", ["hf_one two", '"hf_one"', "hf_\u00e9", "hf_one\x7f"])
def test_a_token_that_no_header_can_carry(hub: HubServer, reader: Reader, token: str) -> None:
    for call, uri in (("model", "hf://owner/tiny"), ("dataset", "hf://datasets/owner/lines")):
        told = refused(reader, "CREDENTIALS_INVALID", call, uri, {"HF_TOKEN": token})
        assert told.startswith(f"{uri}: HF_TOKEN holds characters that no token has (")
    assert not hub.requests
    assert "hf_" not in "".join(reader.answers[-2:])


def test_a_line_break_at_the_end_of_the_token_does_no_harm(reader: Reader) -> None:
    answer = reader.ask("model", "hf://owner/private", {"HF_TOKEN": f"{TOKEN['HF_TOKEN']}\n"})
    assert "config.json" in answer["files"]


def test_the_log_is_quiet(reader: Reader) -> None:
    reader.ask("model", "hf://owner/tiny")
    rows(reader, "lines")
    log = reader.log.read_text()
    assert "HTTP Request" not in log
    assert "it/s" not in log
    assert "Traceback" not in log


def rows(reader: Reader, name: str, **fields: Any) -> list[Any]:
    answer = reader.ask("dataset", f"hf://datasets/owner/{name}", **fields)
    assert "rows" in answer, answer
    found: list[Any] = answer["rows"]
    return found


def texts(reader: Reader, name: str, **fields: Any) -> list[str]:
    return [values["text"] for _, values in rows(reader, name, **fields)]


def read_offline(reader: Reader, revision: str) -> list[Any] | None:
    answer = reader.ask("dataset", "hf://datasets/owner/lines", revision=revision)
    assert answer.get("error", {"code": "NETWORK_UNAVAILABLE"})["code"] == "NETWORK_UNAVAILABLE"
    found: list[Any] | None = answer.get("rows")
    return found


def refused(
    reader: Reader, code: str, call: str, uri: str, environment: dict[str, str] | None = None, **fields: Any
) -> str:
    """How reading fails: one sentence and what to do."""
    answer = reader.ask(call, uri, environment, **fields)
    assert "error" in answer, answer
    error = answer["error"]
    assert error["code"] == code, error
    assert uri in error["message"]
    assert "\n" not in error["message"]
    assert error["hint"]
    return f"{error['message']} ({error['hint']})"
