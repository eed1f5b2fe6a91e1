"""Jobs whose model, data and output are in an object store or on the web, from the command to a model that loads."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from certificate_pairs import needs_openssl
from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from finetune_trainer import storage
from finetune_trainer.loop import TrainingLoop
from finetune_trainer.stop import StopFlag
from objectstore.server import BUCKET, OWNER, ObjectStore
from trainer.processes import environment
from trainer.ranks import on_nodes, run_ranks
from trainer.runs import complete, events, finish, notes
from trainer.test_cli_run import Bench
from trainer.tiny import FULL, HOULSBY, LORA, make_rows, make_run
from web_server import WebServer, serving

pytest_plugins = ["objectstore.plugin"]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def in_store(run: Run, store: ObjectStore, name: str, **uris: str) -> Run:
    """The run with all of its URIs in the store, but for those given (as `train`)."""
    content = json.loads(run.model_dump_json(by_alias=True, exclude_none=True))
    spec = content["spec"]
    for part in ("train", "evaluation"):
        rows = Path(run.manifest_dir, f"{part}.jsonl").read_bytes()
        spec["data"][part]["uri"] = uris.get(part) or store.put(f"{name}/{part}.jsonl", rows)
    if (model := spec["model"]["uri"]).startswith("file://"):
        spec["model"]["uri"] = store.put_all(f"{name}/base", Path(model.removeprefix("file://")))
    spec["output"]["uri"] = f"s3://{BUCKET}/{name}/tuned"
    return Run.model_validate_json(json.dumps(content))


def copied(store: ObjectStore, path: str, directory: Path) -> Path:
    """What is below a path, on this machine."""
    directory.mkdir(parents=True)
    for name, content in store.contents(path).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def bench(tmp_path: Path, tiny_bert: Path, store: ObjectStore) -> Bench:
    """A job of the command, all of it in the store."""
    (tmp_path / "bench").mkdir()
    bench, name = Bench(tmp_path / "bench", tiny_bert), tmp_path.name.replace("_", "-")
    for part in ("train", "evaluation"):
        bench.spec["data"][part]["uri"] = store.put(
            f"{name}/{part}.jsonl", (bench.directory / f"{part}.jsonl").read_bytes()
        )
    bench.spec["model"]["uri"] = store.put_all(f"{name}/base", tiny_bert)
    bench.spec["output"]["uri"] = f"s3://{BUCKET}/{name}/tuned"
    return bench


@pytest.mark.security(19)
def test_a_job_from_store_to_store(bench: Bench, store: ObjectStore, tmp_path: Path) -> None:
    code, said = bench.run()
    assert code == 0, said
    uri = bench.spec["output"]["uri"]
    assert uri in said
    path = uri.removeprefix(f"s3://{BUCKET}/")
    model = copied(store, path, tmp_path / "copy")
    storage.check_directory(model)
    AutoModelForSequenceClassification.from_pretrained(model)
    assert bench.termination()["result"]["uri"] == uri
    assert bench.termination()["result"]["digest"] == storage.digest(model)
    left = [path for path in bench.work.rglob("*") if path.is_file()]
    assert not [path for path in left if {"downloads", "output"} & set(path.parts)], "nothing is kept twice"
    for file in (*left, *model.iterdir()):
        assert OWNER.secret.encode() not in file.read_bytes(), file
    num_requests = len(store.requests())
    again, said = bench.run()
    assert again == 0
    assert "is Complete already" in said
    assert len(store.requests()) == num_requests


@pytest.mark.usefixtures("unchecked_export")
def test_a_run_that_goes_on_does_not_download_again(store: ObjectStore, tiny_bert: Path, tmp_path: Path) -> None:
    run = in_store(make_run(tmp_path, tiny_bert, FULL, training={"maxSteps": 6}), store, "goes-on")
    stop = StopFlag()
    with pytest.MonkeyPatch.context() as patch:
        step = TrainingLoop.train_step
        patch.setattr(TrainingLoop, "train_step", lambda loop: setattr(stop, "is_set", True) or step(loop))
        assert finish(run, stop).exit_code == ExitCode.STOPPED
    first = notes(run)
    complete(run)
    again = notes(run)[len(first) :]
    base = f"s3://{BUCKET}/goes-on/base"
    assert len([note for note in first if note.startswith(f"downloading {base} (")]) == 1
    assert f"{base} is here already" in again
    assert not [note for note in again if note.startswith("downloading")]
    assert any("resumed from the checkpoint" in note for note in again)


def test_an_adapter_names_its_base_in_the_store_and_is_stacked_on(
    store: ObjectStore, tiny_bert: Path, tmp_path: Path
) -> None:
    """Reloaded in a fresh process, which must find the base although its name is no path."""
    run = in_store(make_run(tmp_path / "below", tiny_bert, LORA, training={"maxSteps": 2}), store, "lora")
    complete(run)
    below = copied(store, "lora/tuned", tmp_path / "copy")
    base = f"s3://{BUCKET}/lora/base"
    assert json.loads((below / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert f"a copy of {base}" in (below / "README.md").read_text()
    config = AutoConfig.from_pretrained(below)
    PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(tiny_bert, config=config), below)
    on_top = {"adapter": {**HOULSBY["adapter"], "stackOn": [{"uri": f"s3://{BUCKET}/lora/tuned"}]}}
    upper = in_store(make_run(tmp_path / "upper", tiny_bert, on_top, training={"maxSteps": 1}), store, "upper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune_trainer.export.reload.compare", lambda *_: 0.0)
        complete(upper)
    assert any("stays frozen below the new adapter" in note for note in notes(upper))


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("train.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', ExitCode.DATA_INVALID, " line 2: not valid JSON"),
        ("train.txt", b"a", ExitCode.DATA_INVALID, ": the format cannot be told from the ending '.txt'"),
        ("base/config.json", b"{}", ExitCode.MODEL_INVALID, ": has no model_type"),
        ("base/model.safetensors", b"torn", ExitCode.MODEL_INVALID, ": not a whole safetensors file"),
    ],
)
def test_what_is_wrong_inside_is_told_by_its_uri(
    store: ObjectStore, tiny_bert: Path, tmp_path: Path, name: str, content: bytes, code: ExitCode, words: str
) -> None:
    folder = f"wrong-{name.replace('/', '-')}"
    run = make_run(tmp_path, tiny_bert, FULL, num_train=8, num_evaluation=4, training={"maxSteps": 1})
    uri = store.put(f"{folder}/{name}", content)
    run = in_store(run, store, folder, **({"train": uri} if name.startswith("train") else {}))
    store.put(f"{folder}/{name}", content)
    termination = finish(run)
    assert termination.exit_code == code
    assert f"{uri}{words}" in termination.message
    assert run.work_dir not in termination.message + termination.hint


@pytest.mark.usefixtures("unchecked_export")
def test_two_nodes_download_once(store: ObjectStore, tiny_bert: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, tiny_bert, FULL, num_train=16, num_evaluation=4, training={"maxSteps": 2, "batchSize": 4})
    run = on_nodes(in_store(run, store, "two-nodes"), 2)
    setting = functools.partial(environment, {**store.environment(), "NO_PROXY": "*"})
    assert run_ranks(run, (setting,), (setting,)) == [ExitCode.COMPLETE] * 2
    said = [event["text"] for event in events(run) if event["event"] == "note"]
    assert len([text for text in said if text.startswith("downloading s3://")]) == 3


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    with serving(tmp_path / "web") as server:
        yield server


@needs_openssl
@pytest.mark.usefixtures("unchecked_export")
def test_rows_of_a_web_server(web: WebServer, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in web.environment().items():
        monkeypatch.setenv(name, value)
    train = web.say("/rows/train.csv", b"text,label\n" + b"a good film,good\na bad film,bad\n" * 20)
    evaluation = web.say("/rows/evaluation.jsonl", lines(make_rows(8, seed=2)))
    data = {"train": {"uri": train}, "evaluation": {"uri": evaluation}}
    run = make_run(tmp_path / "run", tiny_bert, FULL, data=data, training={"maxSteps": 1})
    complete(run)
    assert sorted(host_and_path for host_and_path, _ in web.requests) == [
        "files.example/rows/evaluation.jsonl",
        "files.example/rows/train.csv",
    ]


def test_an_output_that_cannot_be_written_ends_before_training(
    store: ObjectStore, tiny_bert: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path, tiny_bert, FULL, num_train=8, num_evaluation=4, output={"uri": "s3://nosuchbucket/x"})
    termination = finish(run)
    assert termination.exit_code == ExitCode.OUTPUT_REFUSED
    assert "spec.output.uri: s3://nosuchbucket/x: there is no such" in termination.message
    assert not Path(run.work_dir, "progress.jsonl").exists(), "nothing has begun"
