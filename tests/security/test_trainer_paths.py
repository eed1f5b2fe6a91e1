"""No path leads out of its volume: not by its words, not by a link, not by what a file names. Nothing is read there."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_api.values import Uri
from objectstore.server import OWNER, use
from security.canaries import WatchedFile, edit_json, watched
from trainer.conftest import unchecked_export  # noqa: F401 - its settings too: few threads, no hub
from trainer.runs import complete, finish, output
from trainer.tiny import FULL, LORA, make_model, make_run

pytestmark = [pytest.mark.security(15), pytest.mark.usefixtures("unchecked_export")]

ROWS = "".join(f'{{"text": "secret {number}", "label": "{"ab"[number % 2]}"}}\n' for number in range(40))
SCHEMES = ("pvc://claim", "file://", "s3://bucket", "https://host")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume with good rows."""
    folder = tmp_path / "volume"
    make_run(folder, tmp_path, FULL)
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[WatchedFile]:
    """Good rows beside the volume, which nothing may open."""
    path = tmp_path / "outside" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text(ROWS)
    with watched(path) as file:
        yield file


def job(volume: Path, model: Path, change: Callable[[dict[str, Any]], None] = lambda spec: None) -> Run:
    """A run whose URIs are all of one volume, with a change of its spec."""
    if not (volume / "model").exists():
        shutil.copytree(model, volume / "model")
    run = make_run(volume.parent / "run", model, FULL, training={"maxSteps": 1})
    content = json.loads(run.model_dump_json(by_alias=True, exclude_none=True))
    content["volumes"] = {"claim": str(volume)}
    spec = content["spec"]
    spec["model"]["uri"] = "pvc://claim/model"
    spec["data"] = {"train": {"uri": "pvc://claim/train.jsonl"}, "evaluation": {"uri": "pvc://claim/evaluation.jsonl"}}
    spec["output"]["uri"] = "pvc://claim/out"
    change(spec)
    return Run.model_validate_json(json.dumps(content))


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """The change that sets a field of the spec, given as `data.train`."""

    def change(spec: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            spec = spec.setdefault(name, {})
        spec[last] = value

    return change


def refused(run: Run, code: ExitCode, *words: str) -> None:
    termination = finish(run)
    assert termination.exit_code == code, termination
    for word in words:
        assert word in termination.message
    assert "secret" not in termination.message
    assert termination.hint


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", ["/..", "/../x", "/a/../b", "/a/..", "/./../x", "/a//..//b", "/..//", "/%2e%2e/../x"])
def test_a_step_up_is_refused_by_the_contract(scheme: str, path: str) -> None:
    with pytest.raises(ValidationError, match="path segment"):
        TypeAdapter(Uri).validate_python(scheme + path)


@pytest.mark.parametrize("path", ["/%2e%2e/outside/rows.jsonl", "/..%2foutside/rows.jsonl", "/\uff0e\uff0e/rows.jsonl"])
def test_an_encoded_step_up_is_a_name_like_any_other(volume: Path, bert: Path, outside: WatchedFile, path: str) -> None:
    refused(job(volume, bert, put("data.train.uri", f"pvc://claim{path}")), ExitCode.DATA_INVALID, "no such file")
    assert not outside.was_opened()


def test_an_absolute_path_starts_at_the_volume(volume: Path, bert: Path, outside: WatchedFile) -> None:
    run = job(volume, bert, put("data.train.uri", f"pvc://claim/{outside.path}"))
    refused(run, ExitCode.DATA_INVALID, "no such file")
    assert not outside.was_opened()


@pytest.mark.parametrize("field", ["train", "evaluation", "replay", "unlabeled", "retention"])
@pytest.mark.parametrize("how", ["file", "folder", "chain", "relative"])
def test_a_data_file_that_links_out_of_the_volume(
    volume: Path, bert: Path, outside: WatchedFile, field: str, how: str
) -> None:
    if how == "folder":
        (volume / "folder").symlink_to(outside.path.parent)
        uri = "pvc://claim/folder/rows.jsonl"
    else:
        target = os.path.relpath(outside.path, volume) if how == "relative" else outside.path
        (volume / "last.jsonl").symlink_to(target)
        (volume / "link.jsonl").symlink_to("last.jsonl" if how == "chain" else target)
        uri = "pvc://claim/link.jsonl"
    changes: dict[str, tuple[str, Any]] = {
        "train": ("data.train.uri", uri),
        "evaluation": ("data.evaluation.uri", uri),
        "replay": ("data.replay", {"source": {"uri": uri}}),
        "unlabeled": ("data.unlabeled", {"uri": uri}),
        "retention": ("evaluation.retention", {"data": {"uri": uri}}),
    }

    def change(spec: dict[str, Any]) -> None:
        put(*changes[field])(spec)
        if field == "unlabeled":
            spec["strategy"] = {"distillation": {"teacher": {"uri": "pvc://claim/model"}, "response": {}}}

    refused(job(volume, bert, change), ExitCode.DATA_INVALID, uri, "out of the volume")
    assert not outside.was_opened()


def test_a_link_within_the_volume_is_followed(volume: Path, bert: Path) -> None:
    """As the hub's cache has them: a snapshot's files are links to blobs beside it."""
    run = job(volume, bert)
    (volume / "model").rename(volume / "blobs")
    (volume / "model").mkdir()
    for path in (volume / "blobs").iterdir():
        (volume / "model" / path.name).symlink_to(f"../blobs/{path.name}")
    (volume / "model" / "itself").symlink_to(".")
    (volume / "train.jsonl").rename(volume / "rows.jsonl")
    (volume / "train.jsonl").symlink_to("rows.jsonl")
    complete(run)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("role", ["model", "teacher", "stackOn"])
def test_a_file_of_a_model_that_links_out_of_the_volume(
    tmp_path: Path, volume: Path, bert: Path, role: str, name: str
) -> None:
    def change(spec: dict[str, Any]) -> None:
        source = {"uri": "pvc://claim/other"}
        if role == "model":
            spec["model"] = source
        elif role == "teacher":
            spec["strategy"] = {"distillation": {"teacher": source, "response": {}}}
        else:
            spec["strategy"] = {"adapter": {"type": "LoRA", "stackOn": [source]}}

    run = job(volume, bert, change)
    shutil.copytree(volume / "model", volume / "other")
    shutil.copytree(volume / "model", tmp_path / "elsewhere")
    (volume / "other" / name).unlink()
    (volume / "other" / name).symlink_to(tmp_path / "elsewhere" / name)
    with watched(tmp_path / "elsewhere" / name) as file:
        refused(run, ExitCode.MODEL_INVALID, "pvc://claim/other", name, "out of the volume")
        assert not file.was_opened()


def test_a_folder_of_a_model_that_links_out_of_the_volume(volume: Path, bert: Path, outside: WatchedFile) -> None:
    run = job(volume, bert)
    (volume / "templates").mkdir()
    (volume / "templates" / "default.jinja").symlink_to(outside.path)
    (volume / "model" / "additional_chat_templates").symlink_to("../templates")
    refused(run, ExitCode.MODEL_INVALID, "default.jinja", "out of the volume")
    assert not outside.was_opened()


def test_an_output_that_links_out_of_the_volume(volume: Path, bert: Path, outside: WatchedFile) -> None:
    run = job(volume, bert)
    (volume / "out").symlink_to(outside.path.parent)
    refused(run, ExitCode.OUTPUT_REFUSED, "pvc://claim/out", "out of the volume")
    (volume / "out").unlink()
    (volume / "folder").symlink_to(outside.path.parent)
    refused(
        job(volume, bert, put("output.uri", "pvc://claim/folder/new/out")), ExitCode.OUTPUT_REFUSED, "out of the volume"
    )
    assert [path.name for path in outside.path.parent.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("uri", ["file:///proc/self/environ", "file:///sys/kernel/uevent_seqnum", "file:///dev/zero"])
def test_files_of_the_kernel_are_no_data(volume: Path, bert: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's secrets are in its environment, and what is wrong with a row is told in the job's status."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for format in ("JSONL", "CSV", "CoNLL"):
        refused(
            job(volume, bert, put("data.train", {"uri": uri, "format": format})),
            ExitCode.DATA_INVALID,
            "nothing is read",
        )
    refused(job(volume, bert, put("output.uri", "file:///dev/shm/out")), ExitCode.OUTPUT_REFUSED, "nothing is written")


def test_a_link_to_files_of_the_kernel_is_no_data(volume: Path, bert: Path) -> None:
    (volume / "link.csv").symlink_to("/proc/self/environ")
    refused(job(volume, bert, put("data.train.uri", f"file://{volume}/link.csv")), ExitCode.DATA_INVALID, "/proc/")
    refused(
        job(volume, bert, put("data.train.uri", "pvc://claim/link.csv")), ExitCode.DATA_INVALID, "out of the volume"
    )


@pytest.mark.timeout(30)
def test_a_pipe_is_no_data(volume: Path, bert: Path) -> None:
    """Opening one that nobody writes to would wait for ever."""
    os.mkfifo(volume / "pipe.jsonl")
    run = job(volume, bert, put("data.train.uri", "pvc://claim/pipe.jsonl"))
    refused(run, ExitCode.DATA_INVALID, "not a regular file")


@pytest.mark.parametrize("entry", ["../outside.safetensors", "/outside.safetensors", "sub/../../outside.safetensors"])
def test_an_index_that_names_weights_elsewhere(tmp_path: Path, volume: Path, bert: Path, entry: str) -> None:
    run = job(volume, bert)
    weights = volume / "model" / "model.safetensors"
    elsewhere = volume / "outside.safetensors"
    weights.rename(elsewhere)
    entry = str(elsewhere) if entry.startswith("/") else entry
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": entry}}
    (volume / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with watched(elsewhere) as file:
        refused(run, ExitCode.MODEL_INVALID, entry, "not safetensors beside it")
        assert not file.was_opened()


@pytest.mark.parametrize("name", ["other.safetensors", "other.safetensors.index.json", "adapter_model.bin", "../x"])
def test_a_configuration_that_names_its_weights(volume: Path, bert: Path, name: str) -> None:
    """Transformers would load that file instead of those that are checked; "adapter_model.bin" is a pickle."""
    run = job(volume, bert)
    edit_json(volume / "model" / "config.json", transformers_weights=name)
    refused(run, ExitCode.MODEL_INVALID, "transformers_weights")


@pytest.mark.parametrize("entry", ["../../outside/rows.jsonl", "{outside}"])
def test_a_manifest_of_an_adapter_that_names_files_elsewhere(
    tmp_path: Path, volume: Path, bert: Path, outside: WatchedFile, entry: str
) -> None:
    below = make_run(tmp_path / "below", bert, LORA, training={"maxSteps": 1})
    complete(below)
    shutil.copytree(output(below), volume / "adapter")
    manifest = volume / "adapter" / "finetune-manifest.json"
    files = json.loads(manifest.read_text())["files"]
    files[entry.format(outside=outside.path)] = {"bytes": 1, "sha256": "0" * 64}
    edit_json(manifest, files=files)
    run = job(volume, bert, put("strategy", {"adapter": {"type": "LoRA", "stackOn": [{"uri": "pvc://claim/adapter"}]}}))
    refused(run, ExitCode.MODEL_INVALID, "names files elsewhere")
    assert not outside.was_opened()


HOSTILE_NAMES = (
    "../config.json", "../../../outside/x.json", "a/../../x.json", "/etc/x.json", "./x.json", "..", "folder/x.json",
    "%2e%2e/x.json", "x\\..\\y.json", "é" * 200 + ".json",
)  # fmt: skip


class LyingStore(BaseHTTPRequestHandler):
    """Stands in for an object store that lists what none would keep: names that are paths."""

    def do_GET(self) -> None:
        keys = "".join(f"<Contents><Key>m/{name}</Key><Size>2</Size></Contents>" for name in HOSTILE_NAMES)
        is_list = "list-type" in self.path
        body = f"<ListBucketResult>{keys}</ListBucketResult>".encode() if is_list else b"{}"
        self.send_response(200)
        for name, value in (("Content-Length", str(len(body))), ("ETag", '"x"')):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def test_names_in_an_object_store_are_no_paths(
    tmp_path: Path, volume: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), LyingStore)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    use(monkeypatch, {**OWNER.environment(), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}"})
    run = job(volume, bert, put("model", {"uri": "s3://bucket/m"}))
    before = set(tmp_path.rglob("*"))
    termination = finish(run)
    server.shutdown()
    server.server_close()
    assert termination.exit_code == ExitCode.MODEL_INVALID, termination
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    [content] = Path(run.work_dir, "downloads").glob("*/content")
    assert [path.name for path in content.iterdir()] == ["x\\..\\y.json"]
    beside = {"lock", "progress.jsonl", "first-start.json", "source.json", "finetune-manifest.json"}
    assert {path.name for path in made if path.parent != content} <= beside
    assert all(path.is_relative_to(run.work_dir) for path in made)
