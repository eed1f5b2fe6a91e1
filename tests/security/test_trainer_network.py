"""Nothing in a job makes the trainer call a host of the platform's own; the token goes to the hub alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.run import Run
from hubserver import server
from hubserver.server import HubServer
from objectstore.server import OWNER, ObjectStore, use
from security.canaries import Host, edit_json, listening
from trainer.conftest import unchecked_export  # noqa: F401 - its settings too: few threads, no hub
from trainer.runs import finish
from trainer.test_data_hub import TOKEN, Reader, make_lines_repository
from trainer.tiny import FULL, make_model, make_run

pytest_plugins = ["objectstore.plugin"]
pytestmark = pytest.mark.security(16)

# {port} is that of a host that must not be called.
HOSTILE = [
    "https://127.0.0.1:{port}/x", "https://localhost:{port}/x", "https://[::1]:{port}/x", "https://0.0.0.0:{port}/x",
    "https://[::ffff:127.0.0.1]:{port}/x", "https://2130706433:{port}/x", "https://0x7f000001:{port}/x",
    "https://0177.0.0.1:{port}/x", "https://127.1:{port}/x", "https://user:pass@127.0.0.1:{port}/x",
    "https://169.254.169.254:{port}/latest/meta-data/", "https://10.0.0.1:{port}/x", "https://127.0.0.1.nip.io:{port}/x",
    "http://127.0.0.1:{port}/x", "ftp://127.0.0.1:{port}/x", "s3://127.0.0.1:{port}/x", "s3://bucket/x",
    "gs://127.0.0.1:{port}/x", "file://127.0.0.1:{port}/x", "pvc://127.0.0.1:{port}/x", "hf://127.0.0.1:{port}/x",
    "hf://datasets/127.0.0.1:{port}/x", "hf://datasets/http://127.0.0.1:{port}/x", "//127.0.0.1:{port}/x",
    "https://127.0.0.1:{port}\\@huggingface.co/x", "zip://x::https://127.0.0.1:{port}/x",
    "simplecache::https://127.0.0.1:{port}/x", "\nhttps://127.0.0.1:{port}/x", "https://huggingface.co@127.0.0.1:{port}/x",
]  # fmt: skip
FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "model": lambda uri: {"model": {"uri": uri}},
    "train": lambda uri: {"data": {"train": {"uri": uri}}},
    "evaluation": lambda uri: {"data": {"train": {"uri": "file://train.jsonl"}, "evaluation": {"uri": uri}}},
    "replay": lambda uri: {"data": {"train": {"uri": "file://train.jsonl"}, "replay": {"source": {"uri": uri}}}},
    "retention": lambda uri: {"evaluation": {"retention": {"data": {"uri": uri}}}},
    "teacher": lambda uri: {"strategy": {"distillation": {"teacher": {"uri": uri}, "response": {}}}},
    "stackOn": lambda uri: {"strategy": {"adapter": {"type": "LoRA", "stackOn": [{"uri": uri}]}}},
    "output": lambda uri: {"output": {"uri": uri}},
}
# Run at once in a fresh process, because connections are noted by an audit hook, which stays for ever.
_RUN_ALL = """
import json, sys
names, hosts = [], []
def note(event, arguments):
    if event == "socket.getaddrinfo":
        names.append(str(arguments[0]))
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        hosts.append(str(arguments[1]))
sys.addaudithook(note)
from finetune_api.run import Run
from finetune_trainer.remote import https
from trainer.runs import finish
https.PAUSES = ()
codes = [int(finish(Run.model_validate_json(line)).exit_code) for line in sys.stdin]
print(json.dumps({"codes": codes, "names": names, "hosts": hosts}))
"""


@pytest.fixture
def elsewhere() -> Iterator[Host]:
    """A host that is not the hub."""
    with listening() as host:
        yield host


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    (root / "datasets" / "owner").mkdir(parents=True)
    make_lines_repository(root / "datasets" / "owner" / "lines", "first")
    hub = HubServer(root)
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def reader(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(hub.endpoint, tmp_path_factory.mktemp("home"))
    yield reader
    reader.stop()


def read_both(hub: HubServer, reader: Reader, name: str) -> None:
    """Read a model and a data set that are not in the cache yet."""
    folder = hub.root / "models" / "owner" / name
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_text("{}")
    make_lines_repository(hub.root / "datasets" / "owner" / name, name)
    reader.ask("model", f"hf://owner/{name}", TOKEN)
    reader.ask("dataset", f"hf://datasets/owner/{name}", TOKEN)


def test_no_uri_in_any_field_makes_a_connection(tmp_path: Path, elsewhere: Host) -> None:
    """Refused by the contract, or by the trainer in words. Of https:// names alone the address is looked up."""
    plain = make_run(tmp_path / "run", make_model(tmp_path / "model"), FULL, num_train=8, num_evaluation=4)
    accepted: list[Run] = []
    for uri in HOSTILE:
        for field, change in FIELDS.items():
            content = json.loads(plain.model_dump_json(by_alias=True, exclude_none=True))
            content["spec"] |= change(uri.format(port=elsewhere.port))
            content["workDir"] = str(tmp_path / "work" / f"{field}-{len(accepted)}")
            try:
                accepted.append(Run.model_validate_json(json.dumps(content)))
            except ValidationError:
                continue
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL],
        input="\n".join(run.model_dump_json(by_alias=True, exclude_none=True) for run in accepted),
        capture_output=True, text=True, check=False,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["codes"]) > len(FIELDS)
    assert answer["hosts"] == []
    assert set(answer["names"]) == {"localhost", "127.0.0.1.nip.io"}
    assert elsewhere.requests == []
    # A file:// output is a path, however its name looks.
    assert {ExitCode.SPEC_INVALID, ExitCode.DATA_INVALID, ExitCode.CREDENTIALS_INVALID} <= set(answer["codes"])
    assert ExitCode.INTERNAL_ERROR not in answer["codes"]


CARDS = {
    "url": "http://127.0.0.1:{port}/x.jsonl",
    "archive": "zip://x.jsonl::http://127.0.0.1:{port}/x.zip",
    "cached": "simplecache::http://127.0.0.1:{port}/x.jsonl",
    "ftp": "ftp://127.0.0.1:{port}/x.jsonl",
    "file": "{outside}",
    "file-url": "file://{outside}",
    "archived-file": "zip://x.jsonl::{outside}",
    "up": "../../../../../..{outside}",
    "other-repository": "hf://datasets/owner/lines/train.jsonl",
}


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize(
    ("place", "key"), [("README.md", "data_files"), (".huggingface.yaml", "data_files"), ("README.md", "data_dir")]
)
def test_the_card_of_a_data_set_cannot_send_its_reader_elsewhere(
    tmp_path: Path, elsewhere: Host, hub: HubServer, reader: Reader, name: str, key: str, place: str
) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"text": "secret", "label": "a"}\n' * 3)
    elsewhere.content = outside.read_bytes()
    address = json.dumps(CARDS[name].format(port=elsewhere.port, outside=outside))
    repository = f"{name}-{key}-{len(place)}"
    folder = hub.root / "datasets" / "owner" / repository
    make_lines_repository(folder, "own")
    yaml = f"configs:\n- config_name: default\n  {key}: {address}\n"
    (folder / place).write_text(f"---\n{yaml}---\n" if place == "README.md" else yaml)
    answer = reader.ask("dataset", f"hf://datasets/owner/{repository}", TOKEN)
    assert elsewhere.requests == []
    assert "secret" not in json.dumps(answer)
    assert "error" in answer or all("own" in row["text"] for _, row in answer["rows"])
    assert "first" not in json.dumps(answer)


@pytest.mark.parametrize("what", ["/resolve/", "/api/"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.security(19)
def test_redirects_never_carry_the_token_elsewhere(
    elsewhere: Host, hub: HubServer, reader: Reader, monkeypatch: pytest.MonkeyPatch, what: str, status: int
) -> None:
    """The hub stores large files on other hosts, so redirects are followed; without the token."""
    plain = server._Handler._answer

    def answer(self: Any, body: bytes) -> None:
        if what not in unquote(urlsplit(self.path).path):
            return plain(self, body)
        to = f"http://127.0.0.1:{elsewhere.port}{self.path}"
        return self._send(status, b"", {"Location": to, "X-Repo-Commit": "a" * 40, "ETag": '"canary"'})

    monkeypatch.setattr(server._Handler, "_answer", answer)
    read_both(hub, reader, f"redirected-{what.strip('/')}-{status}")
    assert elsewhere.requests
    assert set(elsewhere.authorizations) == {None}


@pytest.mark.security(19)
def test_the_next_page_of_a_list_never_gets_the_token_elsewhere(
    elsewhere: Host, hub: HubServer, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = server._Handler._send

    def send(self: Any, status: int, content: bytes, headers: dict[str, str]) -> None:
        link = {"Link": f'<http://127.0.0.1:{elsewhere.port}/next>; rel="next"'} if "/tree/" in self.path else {}
        plain(self, status, content, headers | link)

    monkeypatch.setattr(server._Handler, "_send", send)
    hub.authorizations.clear()
    read_both(hub, reader, "paged")
    assert elsewhere.requests
    assert set(elsewhere.authorizations) == {None}
    assert hub.authorizations == {f"Bearer {TOKEN['HF_TOKEN']}"}


@pytest.mark.usefixtures("unchecked_export")
def test_what_a_model_says_of_itself_is_not_fetched(tmp_path: Path, elsewhere: Host) -> None:
    """Configurations have places for addresses and for names on the hub."""
    model = make_model(tmp_path / "model")
    address = f"http://127.0.0.1:{elsewhere.port}/x"
    edit_json(
        model / "config.json", _name_or_path=address, base_model_name_or_path=address, attn_implementation=address,
        auto_map={"AutoConfig": f"{address}--canary.Config"}, quantization_config=None,
    )  # fmt: skip
    edit_json(model / "tokenizer_config.json", name_or_path=address, vocab_file=address, tokenizer_file=address)
    finish(make_run(tmp_path / "run", model, FULL, num_train=24, training={"maxSteps": 1}))
    assert elsewhere.requests == []


@pytest.mark.parametrize("is_disabled", ["", "false"], ids=["by default", "allowed"])
def test_the_nodes_own_credentials_are_asked_for_by_nobody_unless_its_owner_says_so(
    tmp_path: Path, elsewhere: Host, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, is_disabled: str
) -> None:
    """The metadata service of a cloud gives what the node may do to every pod that reaches it."""
    environment = object_store.environment() | dict.fromkeys(OWNER.environment(), "")
    environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = f"http://127.0.0.1:{elsewhere.port}"
    environment |= {"AWS_PROFILE": "nobody"} | ({"AWS_EC2_METADATA_DISABLED": is_disabled} if is_disabled else {})
    use(monkeypatch, environment)
    data = {"train": {"uri": object_store.put("rows.jsonl", "{}")}}
    termination = finish(make_run(tmp_path, tmp_path, FULL, data=data))
    assert termination.exit_code == ExitCode.CREDENTIALS_INVALID
    assert bool(elsewhere.requests) == (is_disabled == "false")


def test_without_credentials_nobody_is_asked(tmp_path: Path, elsewhere: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{elsewhere.port}"})
    for change in ({"data": {"train": {"uri": "s3://bucket/x.jsonl"}}}, {"output": {"uri": "s3://bucket/x"}}):
        assert finish(make_run(tmp_path, tmp_path, FULL, **change)).exit_code == ExitCode.CREDENTIALS_INVALID
    assert elsewhere.requests == []
