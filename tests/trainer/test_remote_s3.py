"""What is read from object stores and written there, on a real server: once, whole or absent, or refused in words."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import web_server
from certificate_pairs import needs_openssl
from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.remote import output, s3
from finetune_trainer.remote.fetch import fetch
from finetune_trainer.stop import StopFlag
from objectstore.server import BUCKET, OWNER, STRANGER, Keys, ObjectStore, use
from security.canaries import listening
from trainer.data_fixtures import write
from trainer.tiny import FULL, make_run

pytest_plugins = ["objectstore.plugin"]

ROWS = '{"text": "a good film", "label": "good"}\n' * 40
MODEL = {"config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{}", "vocab.txt": "a"}
OTHERS = ("pytorch_model.bin", "modeling_own.py", "README.md", "consolidated.safetensors", "onnx/model.onnx",
          "onnx/config.json", "optimizer.pt")  # fmt: skip


class Halting(StopFlag):
    """Does something the n-th time that it is looked at."""

    def __init__(self, times: int, work: Callable[[], object]) -> None:
        super().__init__()
        self._left, self._work = times, work

    def check(self, what: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._work()
        super().check(what)


def job(directory: Path, model: str = "file:///nowhere", **fields: Any) -> Run:
    """A run of these URIs."""
    run = make_run(directory, Path("/nowhere"), fields.pop("strategy", FULL), **fields)
    content = json.loads(run.model_dump_json(by_alias=True, exclude_none=True))
    content["spec"]["model"]["uri"] = model
    return Run.model_validate_json(json.dumps(content))


def fetched(run: Run, stop: StopFlag | None = None) -> tuple[dict[str, Path], list[str]]:
    """Where things are now, and what was said."""
    notes: list[str] = []
    found = fetch(run, notes.append, stop or StopFlag())
    return {uri: Path(path) for uri, path in found.items()}, notes


def refused(run: Run, code: ExitCode, *words: str, stop: StopFlag | None = None) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        fetched(run, stop)
    error = caught.value
    assert error.code == code, error.message
    assert error.hint
    for word in words:
        assert word in error.message
    for secret in (OWNER.secret, STRANGER.secret, OWNER.access, STRANGER.access, "127.0.0.1"):
        assert secret not in error.message + error.hint
    left = list(Path(run.work_dir).rglob("*")) if Path(run.work_dir).exists() else []
    assert not [path for path in left if path.is_file()], "half a download is left"
    return error


@pytest.fixture
def model(store: ObjectStore, request: pytest.FixtureRequest) -> str:
    """A model of no use, beside what is never downloaded."""
    path = f"model-{abs(hash(request.node.name))}"
    for name, content in MODEL.items():
        store.put(f"{path}/{name}", content)
    for name in OTHERS:
        store.put(f"{path}/{name}", "not to be downloaded")
    return f"s3://{BUCKET}/{path}"


def test_of_a_model_only_its_files_are_downloaded(store: ObjectStore, tmp_path: Path, model: str) -> None:
    found, notes = fetched(job(tmp_path, model))
    assert {path.name: path.read_text() for path in found[model].rglob("*")} == MODEL
    assert notes == [f"downloading {model} (4 files, 0.0 MB)"]


@pytest.mark.parametrize("name", ["rows.jsonl", "a b.csv", "é%20.tsv", "x.parquet"])
def test_data_is_a_file_of_its_own_name(store: ObjectStore, tmp_path: Path, name: str) -> None:
    uri = store.put(f"data/{name.replace(' ', '_')}", ROWS)
    found, _ = fetched(job(tmp_path, data={"train": {"uri": uri}}))
    assert found[uri].read_text() == ROWS
    assert found[uri].name == name.replace(" ", "_")


def test_every_source_is_downloaded_once(store: ObjectStore, tmp_path: Path, model: str) -> None:
    uris = {name: store.put(f"every/{name}.jsonl", name) for name in ("train", "replay", "unlabeled", "retention")}
    data = {"train": uris["train"], "evaluation": uris["train"], "unlabeled": uris["unlabeled"]}
    run = job(
        tmp_path,
        model,
        data={name: {"uri": uri} for name, uri in data.items()} | {"replay": {"source": {"uri": uris["replay"]}}},
        strategy={"distillation": {"teacher": {"uri": model}, "response": {}}},
        evaluation={"retention": {"data": {"uri": uris["retention"]}}},
    )
    found, notes = fetched(run)
    assert set(found) == {*uris.values(), model}
    assert len(notes) == 5
    stacked = job(tmp_path / "stacked", strategy={"adapter": {"type": "LoRA", "stackOn": [{"uri": model}]}})
    assert list(fetched(stacked)[0]) == [model]


def test_a_restart_downloads_only_what_has_changed(store: ObjectStore, tmp_path: Path, model: str) -> None:
    uri = store.put("changing/rows.jsonl", ROWS)
    run = job(tmp_path, model, data={"train": {"uri": uri}})
    first, _ = fetched(run)
    weights, rows = first[model] / "model.safetensors", first[uri]
    seen = weights.stat().st_ino, rows.stat().st_ino
    assert [line for line in store.requests() if "s3_GetObject" in line and uri.rpartition("/")[2] in line]
    num_requests = len(store.requests())
    again, notes = fetched(run)
    assert again == first
    assert (weights.stat().st_ino, rows.stat().st_ino) == seen
    assert notes == [f"{uri} is here already", f"{model} is here already"]
    assert not [line for line in store.requests()[num_requests:] if "s3_GetObject" in line]
    store.put("changing/rows.jsonl", ROWS.replace("good", "fine"))  # of the same size
    again, notes = fetched(run)
    assert again == first
    assert rows.read_text() == ROWS.replace("good", "fine")
    assert weights.stat().st_ino == seen[0]


@pytest.mark.parametrize("what", ["source.json", "content"])
def test_a_damaged_record_is_no_record(store: ObjectStore, tmp_path: Path, what: str) -> None:
    uri = store.put("damaged/rows.jsonl", ROWS)
    run = job(tmp_path, data={"train": {"uri": uri}})
    found, _ = fetched(run)
    place = found[uri].parent.parent
    if what == "content":
        storage.remove(place)
    else:
        (place / what).write_text("{")
    assert fetched(run)[0][uri].read_text() == ROWS


def test_what_is_cut_off_is_not_used_and_downloaded_anew(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 100)
    monkeypatch.setattr(s3, "_NUM_ATTEMPTS", 2)
    uri = store.put("cut/rows.jsonl", ROWS)
    run = job(tmp_path, data={"train": {"uri": uri}})
    stop = Halting(5, lambda: setattr(stop, "is_set", True))
    refused(run, ExitCode.STOPPED, f"stopped while {uri} was being downloaded", stop=stop)
    with passing_on(store) as proxy:
        use(monkeypatch, {**store.environment(), "AWS_ENDPOINT_URL": proxy.url})
        refused(run, ExitCode.NETWORK_UNAVAILABLE, "cannot be reached", stop=Halting(5, proxy.cut))
        assert proxy.num_refused > 1, "it is tried again"
    use(monkeypatch, store.environment())
    assert fetched(run)[0][uri].read_text() == ROWS


def test_what_is_changed_meanwhile_is_not_used(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PART_BYTES", 100)
    uri = store.put("meanwhile/rows.jsonl", ROWS)
    run = job(tmp_path, data={"train": {"uri": uri}})
    stop = Halting(5, lambda: store.put("meanwhile/rows.jsonl", ROWS.replace("good", "fine")))
    refused(run, ExitCode.NETWORK_UNAVAILABLE, f"spec.data.train.uri: {uri}", "was changed", stop=stop)


def test_what_does_not_fit_is_not_begun(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = store.put("large/rows.jsonl", ROWS)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    run = job(tmp_path, data={"train": {"uri": uri}})
    refused(run, ExitCode.STORAGE_FULL, f"spec.data.train.uri: {uri}", "are free")


class PassingOn:
    """A way to the server that can be cut, and then refuses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._is_cut = False
        self.num_refused = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    self.num_refused += 1
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


@contextmanager
def passing_on(store: ObjectStore) -> Iterator[PassingOn]:
    proxy = PassingOn(store.port)
    threading.Thread(target=proxy.accept, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.close()


WRONG_SECRET, WRONG_ID = Keys(OWNER.access, "anotherSecret"), Keys("nobodysId", OWNER.secret)


@pytest.mark.parametrize("keys", [WRONG_SECRET, WRONG_ID, STRANGER], ids=["secret", "id", "stranger"])
@pytest.mark.parametrize("field", ["model", "train"])
def test_who_may_not_read_is_told_so(
    store: ObjectStore, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, keys: Keys, field: str
) -> None:
    use(monkeypatch, store.environment(keys))
    uri = model if field == "model" else f"{model}/config.json"
    run = job(tmp_path, model) if field == "model" else job(tmp_path, data={"train": {"uri": uri}})
    place = "spec.model.uri" if field == "model" else "spec.data.train.uri"
    refused(run, ExitCode.CREDENTIALS_INVALID, f"{place}: {uri}: the object store refuses access")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": ""}, "there are no credentials"),
        ({"AWS_ACCESS_KEY_ID": ""}, "there are no credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "canary\n"}, "AWS_SECRET_ACCESS_KEY is not what"),
        ({"AWS_ACCESS_KEY_ID": "can ary"}, "AWS_ACCESS_KEY_ID is not what"),
        ({"AWS_SESSION_TOKEN": "canary\r\nX: y"}, "AWS_SESSION_TOKEN is not what"),
        ({"AWS_REGION": "canary.example.com/"}, "AWS_REGION is not what"),
        ({"HTTP_PROXY": "canary://x:y"}, "no client can be made"),
        *[({"AWS_ENDPOINT_URL": url}, "AWS_ENDPOINT_URL is not what")
          for url in ("canary", "ftp://canary", "http://", "http://canary/path", "http://me:canary@h", "http://c:x",
                      "http://[canary", "http://canary?x", "http://can ary", "http://canary:99999")],
    ],
)  # fmt: skip
@pytest.mark.security(19)
def test_variables_that_cannot_be_right_are_told_by_name_alone(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], words: str
) -> None:
    use(monkeypatch, store.environment() | change)
    run = job(tmp_path, data={"train": {"uri": f"s3://{BUCKET}/x.jsonl"}})
    error = refused(run, ExitCode.CREDENTIALS_INVALID, f"spec.data.train.uri: s3://{BUCKET}/x.jsonl: {words}")
    assert "canary" not in error.message + error.hint


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://nosuchbucket/x.jsonl", "there is no such"),
        (f"s3://{BUCKET}/absent.jsonl", "there is no such object"),
        (f"s3://{BUCKET}", "names no file"),
        (f"s3://{BUCKET}/a//x.jsonl", "has an empty folder"),
        (f"s3://{BUCKET}/parts", "is a folder"),
    ],
)
def test_data_that_is_not_there(store: ObjectStore, tmp_path: Path, uri: str, words: str) -> None:
    store.put("parts/first.jsonl", ROWS)
    error = refused(job(tmp_path, data={"train": {"uri": uri}}), ExitCode.DATA_INVALID, f"spec.data.train.uri: {uri}")
    assert words in error.message
    if "parts" in uri:
        assert "first.jsonl" in error.hint


@pytest.mark.parametrize("uri", ["s3://nosuchbucket/model", f"s3://{BUCKET}/absent", f"s3://{BUCKET}/only-a-readme"])
def test_a_model_that_is_not_there(store: ObjectStore, tmp_path: Path, uri: str) -> None:
    store.put("only-a-readme/README.md", "# A model\n")
    refused(job(tmp_path, uri), ExitCode.MODEL_INVALID, f"spec.model.uri: {uri}: there is no")


@pytest.mark.security(18)
def test_pickles_are_not_even_downloaded(store: ObjectStore, tmp_path: Path) -> None:
    uri = store.put_all("pickled", _directory(tmp_path / "pickled", {"config.json": "{}", "pytorch_model.bin": "x"}))
    num_requests = len(store.requests())
    refused(job(tmp_path / "run", uri), ExitCode.MODEL_INVALID, "pickles only (pytorch_model.bin)")
    assert not [line for line in store.requests()[num_requests:] if "s3_GetObject" in line]


def test_a_server_that_is_not_there_is_tried_again_and_may_be_back_later(
    store: ObjectStore, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_NUM_ATTEMPTS", 2)
    with passing_on(store) as proxy:
        proxy.cut()
        use(monkeypatch, {**store.environment(), "AWS_ENDPOINT_URL": proxy.url})
        refused(job(tmp_path, model), ExitCode.NETWORK_UNAVAILABLE, f"spec.model.uri: {model}", "cannot be reached")
        assert proxy.num_refused > 1


def test_the_proxy_of_the_environment_is_used(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": {"uri": f"s3://{BUCKET}/x.jsonl"}}
    with listening() as proxy:
        settings = {"AWS_ENDPOINT_URL": "http://store.example", "HTTP_PROXY": f"http://127.0.0.1:{proxy.port}"}
        use(monkeypatch, store.environment() | settings)
        fetched(job(tmp_path / "by-proxy", data=data))  # it answers everything
        assert proxy.requests[0].endswith(f" http://store.example/{BUCKET}/x.jsonl")
        num_requests = len(proxy.requests)
        use(monkeypatch, store.environment() | {"HTTP_PROXY": settings["HTTP_PROXY"], "NO_PROXY": "127.0.0.1"})
        refused(job(tmp_path / "directly", data=data), ExitCode.DATA_INVALID, "there is no such object")
        assert len(proxy.requests) == num_requests


@needs_openssl
@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_store_with_an_authority_of_its_own(tmp_path: Path, is_trusted: bool) -> None:
    """In a process of its own: the client reads SSL_CERT_FILE when it is imported."""
    program = (
        "from finetune_api.exit_codes import ExitCode\n"
        "from finetune_trainer.remote import s3\n"
        "s3._NUM_ATTEMPTS = 1\n"
        "print(s3.Place('s3://bucket/x', ExitCode.DATA_INVALID).names())"
    )
    with web_server.serving(tmp_path) as web:
        environment = {"AWS_ENDPOINT_URL": f"https://localhost:{web.port}", "HOME": "/nonexistent"}
        environment |= OWNER.environment() | ({"SSL_CERT_FILE": str(web.certificate)} if is_trusted else {})
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
        assert bool(web.requests) == is_trusted


# ---- outputs ----


def _directory(path: Path, files: dict[str, str]) -> Path:
    path.mkdir(parents=True)
    for name, content in files.items():
        write(path / name, content)
    return path


def finished(path: Path, **files: str) -> Path:
    """A model as it is exported: whole, with its manifest."""
    names = {
        name.replace("_json", ".json").replace("_safetensors", ".safetensors"): text for name, text in files.items()
    }
    storage.write_directory(path, lambda directory: [write(directory / n, text) for n, text in names.items()] and None)
    return path


NEW = {"config_json": "{}", "model_safetensors": "new", "tokenizer_json": "{}"}


def upload(source: Path, uri: str, stop: StopFlag | None = None) -> list[str]:
    notes: list[str] = []
    output.check(uri)
    output.upload(source, uri, notes.append, stop or StopFlag())
    return notes


def test_a_model_is_uploaded_and_what_makes_it_loadable_last(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write_one = s3.Place.upload
    monkeypatch.setattr(
        s3.Place, "upload", lambda self, path, name, stop: order.append(name) or write_one(self, path, name, stop)
    )
    source = finished(tmp_path / "model", **NEW, adapter_config_json="{}", README_md="# card")
    assert upload(source, f"s3://{BUCKET}/new") == []
    assert store.contents("new") == {path.name: path.read_bytes() for path in source.iterdir()}
    assert order[0] == storage.MANIFEST
    assert set(order[-2:]) == {"config.json", "adapter_config.json"}


def test_an_earlier_output_is_replaced(store: ObjectStore, tmp_path: Path) -> None:
    uri = f"s3://{BUCKET}/replaced"
    upload(finished(tmp_path / "old", **NEW, adapter_config_json="{}", extra_json="old"), uri)
    source = finished(tmp_path / "new", **(NEW | {"model_safetensors": "newer"}))
    upload(source, uri)
    assert store.contents("replaced") == {path.name: path.read_bytes() for path in source.iterdir()}


def test_an_upload_that_was_cut_off_is_not_loadable_and_done_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"s3://{BUCKET}/cut-off"
    upload(finished(tmp_path / "old", **NEW, extra_json="old"), uri)
    source = finished(tmp_path / "model", **NEW)
    stop = Halting(3, lambda: setattr(stop, "is_set", True))
    with pytest.raises(TrainerError) as caught:
        upload(source, uri, stop)
    assert caught.value.code == ExitCode.STOPPED
    assert "config.json" not in store.contents("cut-off")
    upload(source, uri)
    assert store.contents("cut-off") == {path.name: path.read_bytes() for path in source.iterdir()}


def test_an_upload_waits_for_the_store(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_PAUSES", (0.0,))
    monkeypatch.setattr(s3, "_NUM_ATTEMPTS", 2)
    source, uri = finished(tmp_path / "model", **NEW), f"s3://{BUCKET}/patient"
    with passing_on(store) as proxy:
        use(monkeypatch, {**store.environment(), "AWS_ENDPOINT_URL": proxy.url})
        proxy.cut()
        notes: list[str] = []

        def note(text: str) -> None:
            notes.append(text)
            use(monkeypatch, store.environment())

        output.upload(source, uri, note, StopFlag())
        assert "cannot be reached" in notes[0]
        assert len(notes) == 1
        monkeypatch.setattr(output, "PATIENCE_SECONDS", 0.0)
        use(monkeypatch, {**store.environment(), "AWS_ENDPOINT_URL": proxy.url})
        with pytest.raises(TrainerError) as caught:
            output.upload(source, uri, notes.append, StopFlag())
    assert caught.value.code == ExitCode.NETWORK_UNAVAILABLE
    assert store.contents("patient").keys() == {path.name for path in source.iterdir()}


def test_what_others_wrote_is_not_replaced(store: ObjectStore) -> None:
    for path in ("theirs", "half-theirs"):
        store.put(f"{path}/notes.txt", "mine")
    store.put("half-theirs/finetune-manifest.json", "{}")
    for path in ("theirs", "half-theirs"):
        with pytest.raises(TrainerError) as caught:
            output.check(f"s3://{BUCKET}/{path}")
        assert caught.value.code == ExitCode.OUTPUT_REFUSED
        assert "holds files that were not written by a FineTuneJob" in caught.value.message
    assert store.contents("theirs") == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("uri", "code", "words"),
    [
        (f"s3://{BUCKET}", ExitCode.OUTPUT_REFUSED, "a whole bucket"),
        (f"s3://{BUCKET}/", ExitCode.OUTPUT_REFUSED, "a whole bucket"),
        ("s3://nosuchbucket/x", ExitCode.OUTPUT_REFUSED, "there is no such"),
    ],
)
def test_a_place_that_cannot_be_written(store: ObjectStore, uri: str, code: ExitCode, words: str) -> None:
    with pytest.raises(TrainerError, match=words) as caught:
        output.check(uri)
    assert caught.value.code == code


@pytest.mark.parametrize("keys", [WRONG_SECRET, STRANGER], ids=["secret", "stranger"])
def test_who_may_not_write_is_told_before_training(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, keys: Keys
) -> None:
    use(monkeypatch, store.environment(keys))
    with pytest.raises(TrainerError, match="refuses access") as caught:
        output.check(f"s3://{BUCKET}/not-mine")
    assert caught.value.code == ExitCode.CREDENTIALS_INVALID
    assert keys.secret not in caught.value.message + caught.value.hint


def test_a_check_leaves_nothing(store: ObjectStore) -> None:
    output.check(f"s3://{BUCKET}/checked")
    assert store.contents("checked") == {}
